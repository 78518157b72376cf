"""When the run evaluates: before, after, and every few steps in between, each time once, while training goes on.

An evaluation is begun by keeping its weights and its checkpoint. Its prompts are sent after the training groups of the
step to come, by a stream where workers look when there is no training group to be had; what comes back is taken in with
the rest. Figures count in the order in which the evaluations were due, whichever is complete first.

Training waits for evaluations where it has to: when one is due and two are under way already (their weights are held in
memory, and workers that never run out of training groups would never come to them), when the run goes back to its best
checkpoint, which must not depend on who was faster, and at the end.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog

from tersely.errors import CheckpointInvalid
from tersely.trainer.checkpoint import Checkpoint, list_checkpoints
from tersely.trainer.evaluation import Evaluation
from tersely.trainer.history import History
from tersely.trainer.keeper import CheckpointKeeper
from tersely.trainer.parts import Every, Parts, Standing
from tersely.trainer.patience import Patience
from tersely.trainer.publishing import prepare_version
from tersely.trainer.watchdog.pace import EVALUATION
from tersely.types import PolicyVersion, WeightsLabel

_POLL_SECONDS = 0.25
_LOOK_FOR_LOST_SECONDS = 3.0
_MOST_UNDER_WAY = 2

log = structlog.get_logger(__name__)


def step_name(step: int) -> str:
    """Name of the evaluation after a step, e.g. "step-000020"."""
    return f"step-{step:06d}"


class Evaluator:
    """Begins evaluations at the version last published, or at version 0, and books them when they are in.

    Args:
        parts: What the loop works with.
        standing: Where the run stands.
        patience: For Redis.
        keeper: Of checkpoints; told when there are figures of another one.
        initial: Label of version 0.
    """

    def __init__(
        self, parts: Parts, standing: Standing, patience: Patience, keeper: CheckpointKeeper, initial: WeightsLabel
    ) -> None:
        self._parts = parts
        self._standing = standing
        self._patience = patience
        self._keeper = keeper
        self._initial = initial
        self._unsent: list[Evaluation] = []
        self._look = Every(_LOOK_FOR_LOST_SECONDS)

    def before(self) -> None:
        """Begins the evaluation of the initial weights."""
        self._begin("before", self._initial, 0)

    def between(self) -> None:
        """Begins an evaluation if one belongs after the step last trained.

        None does after the last step, which "after" evaluates, nor where the run just went back to weights that were
        evaluated when they were new.
        """
        step = self._standing.step
        if self._is_due_at(step) and self._standing.rolled_back_at != step and not self._parts.drain.is_set():
            self._keeper.ensure()
            self._begin(step_name(step), self._standing.label, step)

    def after(self) -> None:
        """Evaluates the final weights, and waits for that."""
        self._begin("after", self._standing.label, self._standing.step)
        self.settle()

    def resume(self, history: History) -> None:
        """Begins again what an earlier trainer of the run had under way when it ended.

        Args:
            history: The run's log; from its last roll-back on, as the run waits for evaluations before it goes back.
        """
        directory = self._parts.directory
        for path in sorted(directory.path.glob("evaluation-step-*.json")):
            self._parts.recorder.evaluated(directory.read_json(path.name) or {})
        self._keeper.choose_best()
        last = max(history.rollbacks, default=0)
        for checkpoint in list_checkpoints(directory.checkpoints):
            step, label = checkpoint.step, _label_of(checkpoint)
            passed = last < step < self._standing.step
            if passed and self._is_due_at(step) and not self._on_disk(step_name(step), label):
                self._hold_again(checkpoint)
                self._begin(step_name(step), label, step)
                self._parts.store.unpin(label)

    def tend(self) -> None:
        """Sends what was begun, asks for what was lost, and books what is complete; called while groups are awaited.

        Raises:
            QueueError: The server fails; to be called again.
        """
        parts = self._parts
        while self._unsent:
            self._unsent[0].send(parts.issuer, parts.ring)
            self._unsent.pop(0)
        if parts.desk.under_way and self._look.due():
            for evaluation in parts.desk.under_way:
                evaluation.resend_lost(parts.issuer, parts.ring)
        self._book()

    def settle(self) -> bool:
        """Waits until no evaluation is under way; False when a drain came first. No group is issued meanwhile."""
        self._wait_until(lambda: not self._parts.desk.under_way)
        return not self._parts.desk.under_way

    def _is_due_at(self, step: int) -> bool:
        recipe = self._parts.recipe
        every = recipe.evaluation.every
        return bool(every and self._parts.eval_prompts) and 0 < step < recipe.run.steps and step % every == 0

    def _on_disk(self, name: str, label: WeightsLabel) -> bool:
        done = self._parts.directory.read_json(f"evaluation-{name}.json")
        return done is not None and done["weights_sha256"] == label.weights_sha256

    def _begin(self, name: str, label: WeightsLabel, step: int) -> None:
        """Begins an evaluation, unless it is on disk already, under way, or a drain comes first."""
        parts = self._parts
        if not parts.eval_prompts or parts.drain.is_set():
            return
        if self._on_disk(name, label):
            parts.recorder.evaluated(parts.directory.read_json(f"evaluation-{name}.json") or {})
            self._keeper.choose_best()
            return
        if any(evaluation.name == name for evaluation in parts.desk.under_way):
            return
        self._standing.evaluating.add(step)
        self._wait_until(lambda: len(parts.desk.under_way) < _MOST_UNDER_WAY)
        if parts.drain.is_set():
            return
        parts.store.pin(label)
        evaluation = Evaluation(name, label, parts.eval_prompts, step)
        parts.desk.under_way.append(evaluation)
        self._unsent.append(evaluation)
        self._show()

    def _hold_again(self, checkpoint: Checkpoint) -> None:
        """Has the weights of a checkpoint pinned once, though the learner is further on."""
        parts, label = self._parts, _label_of(checkpoint)
        log.info("evaluation taken up again", step=checkpoint.step, weights=str(label))
        tensors, facts = parts.learner.state()
        parts.learner.load_state(checkpoint.tensors(), checkpoint.learner)
        prepared = prepare_version(parts.store, checkpoint.policy_version, parts.learner)
        parts.learner.load_state(tensors, facts)
        if prepared.label != label:
            raise CheckpointInvalid(
                f"The state in {checkpoint.path} does not give the weights it was written with.",
                f"Delete the folder {checkpoint.path}, and go on with --resume.",
            )
        parts.store.hold(prepared)

    def _wait_until(self, over: Callable[[], bool]) -> None:
        """Takes in what comes, training groups too, but issues none."""
        parts = self._parts
        look = Every(_LOOK_FOR_LOST_SECONDS)

        def gather() -> None:
            self.tend()
            if not over():
                if look.due():
                    parts.collector.take_again()
                parts.collector.poll(_POLL_SECONDS)
                parts.pace.arrived(parts.collector.arrived)
                self._book()

        if over() or parts.drain.is_set():
            return
        with parts.pace.phase(EVALUATION, self._standing.step + 1):
            while not over() and not parts.drain.is_set():
                first = parts.desk.under_way[0]
                self._patience.wait_for(
                    f"evaluation {first.name!r} at version {first.label.policy_version}", state="evaluating"
                )
                self._patience.attempt(gather)

    def _book(self) -> None:
        """Writes down the complete evaluations that no earlier one stands before."""
        parts = self._parts
        while parts.desk.under_way and parts.desk.under_way[0].complete:
            evaluation = parts.desk.under_way.pop(0)
            parts.store.unpin(evaluation.label)
            if evaluation.name == "before":
                parts.store.unpin(self._initial)
            result = evaluation.result()
            parts.directory.check_incarnation()
            parts.directory.write_json(f"evaluation-{evaluation.name}.json", result)
            parts.recorder.evaluated(result)
            self._keeper.choose_best()
            self._standing.evaluating.discard(evaluation.step)
        self._show()

    def _show(self) -> None:
        first = next(iter(self._parts.desk.under_way), None)
        progress = None if first is None else {"name": first.name, "done": first.done, "of": first.of}
        self._parts.status.update(evaluation=progress)


def _label_of(checkpoint: Checkpoint) -> WeightsLabel:
    return WeightsLabel(PolicyVersion(checkpoint.policy_version), checkpoint.weights_sha256)
