"""Figures of a batch's rewards: each part by itself, and how two of them go together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations

Columns = Mapping[str, Sequence[float | None]]
PAIR = "~"
"""Stands between the two names of a pair of rewards."""


def reward_parts(groups: Sequence[Columns]) -> dict[str, dict[str, float | None]]:
    """What each reward looks like over a batch.

    Args:
        groups: Per group, the values of each reward, one per completion; None where it could not be computed.

    Returns:
        Per reward `mean`, `std`, `min` and `max` over the completions that have it, `group_std` (mean over groups of
        the standard deviation within the group: what there is to learn from) and `unscored` (share without a value).
        Standard deviations divide by n. None where no completion has the reward.
    """
    parts: dict[str, dict[str, float | None]] = {}
    for name in groups[0] if groups else ():
        columns = [group[name] for group in groups]
        known = [_known(column) for column in columns]
        values = [value for column in known for value in column]
        spreads = [deviation(column) for column in known if column]
        parts[name] = {
            "mean": _mean(values) if values else None,
            "std": deviation(values) if values else None,
            "min": min(values, default=None),
            "max": max(values, default=None),
            "group_std": _mean(spreads) if spreads else None,
            "unscored": 1 - len(values) / sum(len(column) for column in columns),
        }
    return parts


def reward_correlation(groups: Sequence[Columns]) -> dict[str, float | None]:
    """Pearson's correlation of each pair of rewards over completions, after each group's means are taken away.

    Args:
        groups: As in reward_parts.

    Returns:
        By `one~other`, in the order of the rewards; None where one of them does not vary within any group.
    """
    names = list(groups[0]) if groups else []
    return {f"{one}{PAIR}{other}": _correlation(groups, one, other) for one, other in combinations(names, 2)}


def deviation(values: Sequence[float]) -> float:
    """Standard deviation of at least one value, dividing by n; exactly 0 when all are equal."""
    if min(values) == max(values):
        return 0.0
    mean = _mean(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))


def _correlation(groups: Sequence[Columns], one: str, other: str) -> float | None:
    products, ones, others = [], [], []
    for group in groups:
        pairs = [(a, b) for a, b in zip(group[one], group[other], strict=True) if a is not None and b is not None]
        if not pairs:
            continue
        mean_a, mean_b = (_mean([pair[i] for pair in pairs]) for i in (0, 1))
        products += [(a - mean_a) * (b - mean_b) for a, b in pairs]
        ones += [(a - mean_a) ** 2 for a, _ in pairs]
        others += [(b - mean_b) ** 2 for _, b in pairs]
    scale = math.sqrt(math.fsum(ones)) * math.sqrt(math.fsum(others))
    if scale < 1e-12:  # rounding of equal values
        return None
    return max(-1.0, min(1.0, math.fsum(products) / scale))


def _known(column: Sequence[float | None]) -> list[float]:
    return [value for value in column if value is not None]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
