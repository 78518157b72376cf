"""When the run evaluates: before, after, and every few steps in between, each time once.

Training waits for an evaluation: it trains no step and issues no group until the last prompt is back. What was issued
before goes on round the ring, so that an asynchronous run finds it there afterwards, no older in versions than it was.
"""

from __future__ import annotations

from tersely.trainer.evaluation import Evaluation
from tersely.trainer.parts import Every, Parts, Standing
from tersely.trainer.patience import Patience
from tersely.types import WeightsLabel

_POLL_SECONDS = 0.25
_LOOK_FOR_LOST_SECONDS = 3.0


def step_name(step: int) -> str:
    """Name of the evaluation after a step, e.g. "step-000020"."""
    return f"step-{step:06d}"


class Evaluator:
    """Runs evaluations at the version last published, or at version 0.

    Args:
        parts: What the loop works with.
        standing: Where the run stands.
        patience: For Redis.
        initial: Label of version 0.
    """

    def __init__(self, parts: Parts, standing: Standing, patience: Patience, initial: WeightsLabel) -> None:
        self._parts = parts
        self._standing = standing
        self._patience = patience
        self._initial = initial

    def due(self) -> bool:
        """Whether an evaluation belongs after the step last trained.

        None does after the last step, which "after" evaluates, nor where the run just went back to weights that were
        evaluated when they were new.
        """
        recipe, step = self._parts.recipe, self._standing.step
        every = recipe.evaluation.every
        return (
            bool(every) and 0 < step < recipe.run.steps and step % every == 0 and self._standing.rolled_back_at != step
        )

    def before(self) -> None:
        """Evaluates the initial weights."""
        self._evaluate("before", self._initial, 0)

    def between(self) -> None:
        """Evaluates the weights after the step last trained."""
        self._evaluate(step_name(self._standing.step), self._standing.label, self._standing.step)

    def after(self) -> None:
        """Evaluates the final weights."""
        self._evaluate("after", self._standing.label, self._standing.step)

    def _evaluate(self, name: str, label: WeightsLabel, step: int) -> None:
        """Runs an evaluation to its end, unless it is on disk already, or a drain comes first."""
        parts = self._parts
        done = parts.directory.read_json(f"evaluation-{name}.json")
        if not parts.eval_prompts or parts.drain.is_set():
            return
        if done is not None and done["weights_sha256"] == label.weights_sha256:
            parts.recorder.evaluated(done)
            return
        evaluation = Evaluation(name, label, parts.eval_prompts, step)
        self._patience.wait_for(f"evaluation {name!r} at version {label.policy_version}")
        parts.store.pin(label)
        parts.desk.current = evaluation
        self._patience.attempt(lambda: evaluation.send(parts.issuer, parts.ring))
        look = Every(_LOOK_FOR_LOST_SECONDS)

        def gather() -> None:
            if look.due():
                parts.collector.take_again()
                evaluation.resend_lost(parts.issuer, parts.ring)
            parts.collector.poll(_POLL_SECONDS)

        while not evaluation.complete and not parts.drain.is_set():
            progress = {"name": name, "done": evaluation.done, "of": evaluation.of}
            parts.status.update(state="evaluating", evaluation=progress)
            self._patience.attempt(gather)
        parts.desk.current = None
        parts.store.unpin(label)
        if name == "before":
            parts.store.unpin(self._initial)
        parts.status.update(evaluation=None)
        if evaluation.complete:
            result = evaluation.result()
            parts.directory.write_json(f"evaluation-{name}.json", result)
            parts.recorder.evaluated(result)
