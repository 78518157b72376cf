"""Settings that are each allowed, but can't mean what they say together."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tersely.config.schema import Recipe

_BUILT_IN_MODELS = ("smollm2-135m", "tiny")
_QUEUE_SCHEMES = ("redis://", "rediss://", "unix://")


def refuse_contradictions(recipe: Recipe) -> None:
    """Holds the sections of a recipe against each other.

    Raises:
        ValueError: naming the keys and what to set.
    """
    learner, model = recipe.learner, recipe.model
    if learner.correction != "none" and "recomputed_logprobs" in learner.ablate:
        raise ValueError(
            f"learner.correction is {learner.correction}, but learner.ablate has recomputed_logprobs, which ignores"
            ' what the correction is made from: set learner.correction = "none", or take recomputed_logprobs out'
        )
    if learner.warmup_steps > recipe.run.steps:
        raise ValueError(
            f"learner.warmup_steps is {learner.warmup_steps}, but run.steps is {recipe.run.steps}, so the learning rate"
            f" would never come to its peak: set learner.warmup_steps to {recipe.run.steps} or less"
        )
    if model.revision is not None and (model.name in _BUILT_IN_MODELS or model.name.startswith((".", "/", "~"))):
        raise ValueError(
            f"model.revision is {model.revision!r}, but model.name {model.name!r} is not a hub id and has no revisions:"
            " remove model.revision"
        )
    if recipe.queue.url is not None and not recipe.queue.url.startswith(_QUEUE_SCHEMES):
        raise ValueError("queue.url: write it like redis://HOST:6379, rediss://HOST:6379 or unix:///PATH")
    if recipe.evaluation.prompts and recipe.data.eval_split == recipe.data.train_split:
        raise ValueError(
            f"data.eval_split is {recipe.data.eval_split!r}, the split that is trained on, so nothing would be held"
            " out: set data.eval_split to another split, or evaluation.prompts = 0"
        )
    repeated = [name for name, count in Counter(stage.name for stage in recipe.stages).items() if count > 1]
    if repeated:
        raise ValueError(f"stages: two are named {repeated[0]!r}: give each a name of its own")
