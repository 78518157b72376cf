"""Which checkpoints there are, and which of them is the best on held-out prompts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import structlog

from tersely.trainer.checkpoint import Checkpoint, Keeping, list_checkpoints, prune, write_checkpoint
from tersely.trainer.history import History
from tersely.trainer.parts import Parts, Standing
from tersely.trainer.watchdog.pace import CHECKPOINT

log = structlog.get_logger(__name__)

_BEST = "best.json"


class CheckpointKeeper:
    """Writes checkpoints and keeps the newest few, the best one, and those that a roll-back goes back to.

    Args:
        parts: What the loop works with.
        standing: Where the run stands.
        history: The run's log, kept up to date by whoever writes to it.
    """

    def __init__(self, parts: Parts, standing: Standing, history: History) -> None:
        self._parts = parts
        self._standing = standing
        self._history = history

    def ensure(self) -> None:
        """Writes a checkpoint of the step last trained, unless there is one."""
        if self._standing.checkpointed_step < self._standing.step:
            self.write()

    def catch_up(self) -> None:
        """Does what an earlier trainer of the run may not have got to after the step last trained.

        Which checkpoints there are to go back to must not depend on when a trainer was killed.
        """
        if self._standing.step > 0 and self._standing.step % self._parts.recipe.run.checkpoint_every == 0:
            self.ensure()
        self._parts.directory.check_incarnation()
        prune(self._parts.directory.checkpoints, self._keeping())

    def write(self) -> None:
        """Writes a checkpoint of the step last trained.

        Raises:
            TrainerSuperseded: A newer trainer writes them now.
        """
        parts, standing = self._parts, self._standing
        parts.directory.check_incarnation()
        parts.status.update(waiting_for="the checkpoint to be written")
        began = time.monotonic()
        with parts.pace.phase(CHECKPOINT, max(1, standing.step)):
            tensors, learner = parts.learner.state()
            path = write_checkpoint(
                parts.directory.checkpoints,
                step=standing.step,
                policy_version=standing.label.policy_version,
                weights_sha256=standing.label.weights_sha256,
                tensors=tensors,
                learner=learner,
                keeping=self._keeping(),
                check=parts.directory.check_incarnation,
            )
        standing.checkpointed_step = standing.step
        parts.events.write("checkpoint_written", step=standing.step, path=path.name, seconds=time.monotonic() - began)

    def choose_best(self) -> None:
        """Finds the best of the evaluated checkpoints and names it in best.json; of equals the earliest.

        To be called whenever an evaluation is in, in the order in which they were due: "earliest" is by that.
        A checkpoint of a stretch that the run went back from can be the best: it is what it was measured as. So is one
        whose evaluation is no longer there, because the run ended with it and then went on.
        """
        recipe, directory = self._parts.recipe, self._parts.directory
        if not recipe.evaluation.every:
            return
        figure, best = recipe.best_figure, self._best_so_far()
        for checkpoint, evaluation in self._evaluated():
            of_mode = evaluation[figure.mode]
            value = of_mode["rewards"].get(figure.name, of_mode.get(figure.name))
            if value is not None and (best is None or figure.is_better(value, best["value"])):
                best = {
                    "step": checkpoint.step,
                    "figure": recipe.evaluation.best_by,
                    "value": value,
                    "checkpoint": f"checkpoints/{checkpoint.path.name}",
                    "policy_version": checkpoint.policy_version,
                    "weights_sha256": checkpoint.weights_sha256,
                }
        if best is not None and best != directory.read_json(_BEST):
            directory.write_json(_BEST, best)
            self._parts.events.write("best_checkpoint", **best)
        self._parts.status.update(best=best)

    def _best_so_far(self) -> dict[str, Any] | None:
        """What best.json names, if that is there and the same figure decides."""
        best: dict[str, Any] | None = self._parts.directory.read_json(_BEST)
        if best is None or best["figure"] != self._parts.recipe.evaluation.best_by:
            return None
        found = list_checkpoints(self._parts.directory.checkpoints)
        named = {(checkpoint.step, checkpoint.weights_sha256) for checkpoint in found}
        return best if (best["step"], best["weights_sha256"]) in named else None

    def target(self) -> Checkpoint | None:
        """The checkpoint to go back to when the last steps went wrong.

        The best one; where nothing was evaluated, the newest from before the window that alarms look at, or else the
        oldest. Never one of a stretch that the run went back from already, nor one that is there only because the
        run was interrupted.
        """
        step = self._standing.step
        found = list_checkpoints(self._parts.directory.checkpoints)
        alive = [
            checkpoint
            for checkpoint in self._keeping().of(found)
            if checkpoint.step < step and not self._was_left(checkpoint)
        ]
        best = self._parts.directory.read_json(_BEST)
        for checkpoint in alive:
            if best is not None and checkpoint.weights_sha256 == best["weights_sha256"]:
                return checkpoint
        alive = [checkpoint for checkpoint in alive if self._counts(checkpoint)]
        before = [one for one in alive if one.step <= step - self._parts.recipe.alarms.window_steps]
        return before[-1] if before else next(iter(alive), None)

    def _keeping(self) -> Keeping:
        best = self._parts.directory.read_json(_BEST)
        return Keeping(
            self._parts.recipe.run.keep_checkpoints,
            protect=frozenset(
                self._standing.evaluating if best is None else {*self._standing.evaluating, best["step"]}
            ),
            rollbacks={rollback.step: rollback.to_step for rollback in self._history.rollbacks.values()},
            counts=self._counts,
        )

    def _counts(self, checkpoint: Checkpoint) -> bool:
        """Whether the run writes it wherever it is interrupted; a drain, and the end, write others."""
        recipe, every = self._parts.recipe, self._parts.recipe.evaluation.every
        rollback = self._history.rollbacks.get(checkpoint.step)
        if rollback is not None and rollback.label.policy_version == checkpoint.policy_version:
            return False  # what is due at its step was written before the run went back
        return checkpoint.step % recipe.run.checkpoint_every == 0 or bool(every and checkpoint.step % every == 0)

    def _was_left(self, checkpoint: Checkpoint) -> bool:
        return any(
            rollback.to_step < checkpoint.step <= rollback.step
            and checkpoint.policy_version < rollback.label.policy_version
            for rollback in self._history.rollbacks.values()
        )

    def _evaluated(self) -> Iterator[tuple[Checkpoint, dict[str, Any]]]:
        """Checkpoints on disk whose weights were evaluated, oldest first."""
        directory = self._parts.directory
        evaluations = {}
        for path in sorted(directory.path.glob("evaluation-*.json")):
            evaluation = directory.read_json(path.name)
            evaluations[evaluation["weights_sha256"]] = evaluation
        for checkpoint in list_checkpoints(directory.checkpoints):
            if checkpoint.weights_sha256 in evaluations:
                yield checkpoint, evaluations[checkpoint.weights_sha256]
