"""Rewards of a group -> advantages of its samples: plain float64 arithmetic, no tensors.

A sample counts only if every reward with a weight other than 0 scored it: a None (or a value that is not finite) in any
of them takes the sample out, and its advantage is None. Rewards of weight 0 are for show and never looked at.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

Rewards = Mapping[str, Sequence[float | None]]
Advantages = tuple[float | None, ...]
Scale = Literal["std", "none"]
Combine = Literal["auto", "normalize_then_sum", "sum_then_normalize"]

STD_EPSILON = 1e-4
"""Added to a standard deviation before dividing, as TRL does: nearly equal rewards don't blow up."""


def has_signal(rewards: Rewards, weights: Mapping[str, float], combine: Combine = "auto") -> bool:
    """Whether a group can teach anything: two or more scorable samples, and a difference between them.

    The difference is looked for where the advantage will be made: with one weighted reward or `sum_then_normalize` in
    the weighted total, with `normalize_then_sum` in each weighted reward. So rewards that differ but cancel exactly in
    the total are signal for the latter, because each is divided by its own spread before the sum. (Should those cancel
    too, the advantages are 0 and the group is trained on in vain, which is harmless.)

    Args:
        rewards: Per reward name, one value per sample; None: could not be scored.
        weights: Per reward name its factor; a weighted reward that `rewards` lacks makes every sample unscorable.
        combine: As for `batch_advantages`.
    """
    names = _weighted(weights)
    samples = _scorable(rewards, names)
    if len(samples) < 2:
        return False
    if _combine_for(combine, names) == "normalize_then_sum":
        return any(_varies([_value(rewards, name, index) for index in samples]) for name in names)
    return _varies([_total(rewards, weights, names, index) for index in samples])


def batch_advantages(
    groups: Sequence[Rewards], weights: Mapping[str, float], *, scale: Scale = "std", combine: Combine = "auto"
) -> list[Advantages]:
    """Advantages of all samples of a batch, one tuple per group in the same order.

    `sum_then_normalize`: the weighted sum of the rewards, minus its group mean and, for `scale="std"`, over its group
    standard deviation (ddof 1) + 1e-4. `normalize_then_sum` (GDPO, arXiv 2601.05242): the same for each reward by
    itself, then the weighted sum, which is normalised once more over all samples of the batch.

    Args:
        groups: The groups of one optimizer step, each with a value or None per reward and sample.
        weights: Per reward name its factor in the sum.
        scale: Whether to divide by standard deviations (of groups and batch) or only to subtract means.
        combine: Order of summing and normalising; `auto`: normalise first as soon as two rewards have a weight.

    Returns:
        Per group a number per sample, None for a sample that is out. A group with fewer than two scorable samples
        has no mean to compare with: all its advantages are None.

    Raises:
        ValueError: if no reward has a weight, or the rewards of one group differ in length.
    """
    names = _weighted(weights)
    if not names:
        raise ValueError("no reward has a weight other than 0")
    order = _combine_for(combine, names)
    kept = [_scorable(rewards, names) for rewards in groups]
    kept = [samples if len(samples) >= 2 else [] for samples in kept]
    if order == "sum_then_normalize":
        totals = [
            [_total(rewards, weights, names, i) for i in samples] for rewards, samples in zip(groups, kept, strict=True)
        ]
        values = [_normalize(group, scale) for group in totals]
    else:
        sums = [_normalized_sum(*pair, weights, names, scale) for pair in zip(groups, kept, strict=True)]
        flat = iter(_normalize([value for group in sums for value in group], scale))
        values = [[next(flat) for _ in group] for group in sums]
    return [
        _spread(samples, group, _size(rewards)) for rewards, samples, group in zip(groups, kept, values, strict=True)
    ]


def _weighted(weights: Mapping[str, float]) -> list[str]:
    return [name for name, weight in weights.items() if weight != 0]


def _combine_for(combine: Combine, names: Sequence[str]) -> Combine:
    if combine != "auto":
        return combine
    return "normalize_then_sum" if len(names) > 1 else "sum_then_normalize"


def _size(rewards: Rewards) -> int:
    sizes = {len(values) for values in rewards.values()}
    if len(sizes) > 1:
        raise ValueError(f"rewards of one group have different numbers of samples: {sorted(sizes)}")
    return sizes.pop() if sizes else 0


def _scorable(rewards: Rewards, names: Sequence[str]) -> list[int]:
    """Indices of the samples that every weighted reward scored."""
    if not names or any(name not in rewards for name in names):
        return []

    def scored(index: int) -> bool:
        values = (rewards[name][index] for name in names)
        return all(value is not None and math.isfinite(value) for value in values)

    return [index for index in range(_size(rewards)) if scored(index)]


def _value(rewards: Rewards, name: str, index: int) -> float:
    value = rewards[name][index]
    if value is None:
        raise ValueError(f"reward {name} of sample {index} is None")
    return float(value)


def _total(rewards: Rewards, weights: Mapping[str, float], names: Sequence[str], index: int) -> float:
    return math.fsum(weights[name] * _value(rewards, name, index) for name in names)


def _normalized_sum(
    rewards: Rewards, samples: Sequence[int], weights: Mapping[str, float], names: Sequence[str], scale: Scale
) -> list[float]:
    parts = {name: _normalize([_value(rewards, name, index) for index in samples], scale) for name in names}
    return [math.fsum(weights[name] * parts[name][place] for name in names) for place in range(len(samples))]


def _normalize(values: Sequence[float], scale: Scale) -> list[float]:
    if not values:
        return []
    mean = math.fsum(values) / len(values)
    centred = [value - mean for value in values]
    if scale == "none" or len(values) < 2:
        return centred
    std = math.sqrt(math.fsum(value * value for value in centred) / (len(values) - 1))
    return [value / (std + STD_EPSILON) for value in centred]


def _varies(values: Sequence[float]) -> bool:
    return max(values) != min(values)


def _spread(samples: Sequence[int], values: Sequence[float], size: int) -> Advantages:
    spread: list[float | None] = [None] * size
    for index, value in zip(samples, values, strict=True):
        spread[index] = value
    return tuple(spread)
