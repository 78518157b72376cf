"""Brings a fresh learner along a run's log: from the best place to begin, through every logged batch and roll-back.

A roll-back needs the state of an earlier step. It comes from that step's checkpoint if there is one; else the state is
kept in memory when training passes the step, which the log tells in advance, and the beginning is chosen accordingly.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tersely.errors import LogCorrupt
from tersely.trainer.checkpoint import Checkpoint
from tersely.trainer.health import StepHealth
from tersely.trainer.history import History, Rollback
from tersely.trainer.learner import Learner
from tersely.trainer.samples import training_group
from tersely.types import PolicyVersion, WeightsLabel
from tersely.v1 import group_pb2

if TYPE_CHECKING:
    from torch import Tensor

_State = tuple[dict[str, "Tensor"], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Start:
    """Where to begin.

    Attributes:
        step: Steps trained there.
        label: Logged label of the weights there.
        checkpoint: The state; None: the initial one.
        rolled_back: Whether the roll-back logged at this step, if any, is in the state already.
    """

    step: int
    label: WeightsLabel
    checkpoint: Checkpoint | None = None
    rolled_back: bool = False


@dataclass(frozen=True, slots=True)
class Retraced:
    """One thing done: the beginning (the first), a step trained, or a roll-back.

    Attributes:
        step: Steps trained.
        groups: The batch of a step.
        health: What the learner measured at a step.
        rollback: The roll-back, if it is one.
        seconds: How long it took.
    """

    step: int
    seconds: float
    groups: Sequence[group_pb2.ScoredGroup] = ()
    health: StepHealth | None = None
    rollback: Rollback | None = None

    @property
    def is_start(self) -> bool:
        """Whether it is the beginning."""
        return self.health is None and self.rollback is None


def choose_start(history: History, checkpoints: Sequence[Checkpoint], at_most: int | None = None) -> Start:
    """The newest place from which everything after it can be done again.

    Args:
        history: The run.
        checkpoints: Those on disk.
        at_most: Not beyond this step; None: as far as possible.
    """
    assert history.initial is not None
    candidates = [Start(0, history.initial)]
    for checkpoint in checkpoints:
        label = WeightsLabel(PolicyVersion(checkpoint.policy_version), checkpoint.weights_sha256)
        rollback = history.rollbacks.get(checkpoint.step)
        after = rollback is not None and rollback.label == label
        candidates.append(Start(checkpoint.step, label, checkpoint, after))
    for rollback in history.rollbacks.values():
        target = _checkpoint_of(rollback, checkpoints)
        if target is not None:
            candidates.append(Start(rollback.step, rollback.label, target, True))
    allowed = [start for start in candidates if at_most is None or start.step <= at_most]
    for start in sorted(allowed, key=lambda start: (start.step, start.rolled_back), reverse=True):
        if all(_is_reachable(rollback, start, history, checkpoints) for rollback in _pending(history, start)):
            return start
    return candidates[0]


def retrace(
    history: History,
    learner: Learner,
    start: Start,
    checkpoints: Sequence[Checkpoint],
    before_step: Callable[[int], object] = lambda step: None,
) -> Iterator[Retraced]:
    """Brings a learner that is in its initial state to `start`, then to the end of the log; yields what was done.

    Args:
        history: The run; what the caller changes in it meanwhile has no effect on steps that are done.
        learner: In its initial state.
        start: From `choose_start`.
        checkpoints: Those that `choose_start` knew.
        before_step: Called with the number of each step before it is trained.

    Raises:
        CheckpointInvalid, LogCorrupt.
    """
    by_step = {rollback.step: rollback for rollback in sorted(_pending(history, start), key=lambda r: r.step)}
    places = {step: _place(rollback, history) for step, rollback in by_step.items()}
    last_use = {
        places[step]: step for step, rollback in by_step.items() if _checkpoint_of(rollback, checkpoints) is None
    }
    kept: dict[tuple[int, bool], _State] = {}

    def keep(place: tuple[int, bool]) -> None:
        if place in last_use:
            kept[place] = learner.state()

    def roll_back(rollback: Rollback) -> Retraced:
        began = time.monotonic()
        checkpoint, place = _checkpoint_of(rollback, checkpoints), places[rollback.step]
        tensors, facts = (checkpoint.tensors(), checkpoint.learner) if checkpoint is not None else kept[place]
        learner.load_state(tensors, facts)
        if last_use.get(place) == rollback.step:
            del kept[place]
        keep((rollback.step, True))
        return Retraced(rollback.step, time.monotonic() - began, rollback=rollback)

    began = time.monotonic()
    keep((0, False))
    if start.checkpoint is not None:
        learner.load_state(start.checkpoint.tensors(), start.checkpoint.learner)
    if start.step > 0:
        keep((start.step, start.rolled_back))
    yield Retraced(start.step, time.monotonic() - began)
    if start.step in by_step:
        yield roll_back(by_step[start.step])
    for step in range(start.step + 1, history.last_step + 1):
        if step not in history.batches:
            raise LogCorrupt(
                f"The write-ahead log has no batch for step {step}, but one for step {history.last_step}.",
                "Restore the file from a backup.",
            )
        before_step(step)
        began, groups = time.monotonic(), history.batches[step]
        health = learner.train([training_group(group) for group in groups], step)
        yield Retraced(step, time.monotonic() - began, groups, health)
        keep((step, False))
        if step in by_step:
            yield roll_back(by_step[step])


def _pending(history: History, start: Start) -> Iterator[Rollback]:
    """Roll-backs that are still to be done from a beginning."""
    for rollback in history.rollbacks.values():
        if rollback.step > start.step or (rollback.step == start.step and not start.rolled_back):
            yield rollback


def _checkpoint_of(rollback: Rollback, checkpoints: Sequence[Checkpoint]) -> Checkpoint | None:
    for checkpoint in checkpoints:
        if (checkpoint.step, checkpoint.weights_sha256) == (rollback.to_step, rollback.label.weights_sha256):
            return checkpoint
    return None


def _place(rollback: Rollback, history: History) -> tuple[int, bool]:
    """When the state it goes back to was there: (step, whether after a roll-back at that step)."""
    trained, other = history.versions.get(rollback.to_step), history.rollbacks.get(rollback.to_step)
    wanted = rollback.label.weights_sha256
    after = other is not None and other.label.weights_sha256 == wanted
    return rollback.to_step, after and (trained is None or trained.weights_sha256 != wanted)


def _is_reachable(rollback: Rollback, start: Start, history: History, checkpoints: Sequence[Checkpoint]) -> bool:
    place = _place(rollback, history)
    passed = place == (0, False) or place >= (start.step, start.rolled_back)
    return passed or _checkpoint_of(rollback, checkpoints) is not None
