"""Made-up figures of steps, for alarms."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

from tersely.config import Recipe
from tersely.trainer.alarms import Alarm, AlarmWatch
from tersely.v1 import common_pb2, group_pb2

STOP_ID = 2
Changes = Callable[[int], dict[str, Any]]


def healthy(step: int) -> dict[str, Any]:
    """Figures of a step of a run that learns: the length error falls from 30 to 5 tokens over 60 steps."""
    learned = min(1.0, step / 60)
    return {
        "step": step,
        "mean_tokens": 64.0,
        "mean_abs_length_error": 30.0 - 25.0 * learned,
        "within_5": 0.1 + 0.6 * learned,
        "truncated": 0.3 * (1 - learned),
        "length_std": 30.0 - 22.0 * learned,
        "entropy": 3.0 - learned,
        "grad_norm": 2.0 + 0.5 * (step % 3),
        "mismatch": 5e-6,
        "staleness": 0.0,
        "zero_variance": 0.0,
        "stale_share": 0.0,
        "distinct_1": 0.5,
        "distinct_2": 0.88,
        "self_overlap": 0.02,
        "opening_share": 0.1,
        "reward_correlation": {"length~rouge_l": 0.2},
    }


def trace(steps: int, changes: Changes = lambda _: {}) -> list[dict[str, Any]]:
    """Healthy steps 1 to `steps`, with what `changes` says for a step put in."""
    return [{**healthy(step), **changes(step)} for step in range(1, steps + 1)]


def raised(recipe: Recipe, figures: Iterable[dict[str, Any]]) -> list[Alarm]:
    """All alarms of a trace, in order."""
    watch = AlarmWatch(recipe)
    return [alarm for step in figures for alarm in watch.observe(step)]


def two_rewards(**sections: Any) -> Recipe:
    """A recipe that trains on length and rouge_l."""
    return Recipe.model_validate({"rewards": {"length": {}, "rouge_l": {"weight": 0.5}}, **sections})


def group_of_lengths(prompt_id: str, lengths: list[int], recipe: Recipe, seed: int = 0) -> group_pb2.ScoredGroup:
    """A scored group whose completions have these lengths in tokens, cut off at the recipe's limit; random words."""
    target, limit = recipe.length.target_tokens, recipe.max_completion_tokens
    draw = random.Random(f"{prompt_id} {seed}")
    group = group_pb2.ScoredGroup()
    group.group.prompt.prompt_id = prompt_id
    group.group.prompt.target_tokens = target
    for index, length in enumerate(lengths):
        stops = length < limit
        completion = group.group.completions.add(
            sample_index=index,
            token_ids=[5] * min(length, limit) + ([STOP_ID] if stops else []),
            finish_reason=common_pb2.FINISH_REASON_STOP if stops else common_pb2.FINISH_REASON_LENGTH,
            text=" ".join(f"word{draw.randrange(3000)}" for _ in range(min(length, limit))),
        )
        reward = max(-1.0, -abs(len(completion.token_ids) - int(stops) - target) / target)
        group.rewards.add().rewards.add(name="length", value=reward)
    return group
