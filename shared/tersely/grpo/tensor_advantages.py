"""Advantages for tensors and nested lists: the front of `group_advantages`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from tersely.grpo.group_advantages import Combine, Scale, batch_advantages

RewardTable = torch.Tensor | Sequence[Sequence[float | None]]

_ONLY = "reward"


def advantages(
    rewards_BG: RewardTable | Mapping[str, RewardTable],
    *,
    weights: Mapping[str, float] | None = None,
    scale: Scale = "std",
    combine: Combine = "auto",
) -> torch.Tensor:
    """Advantages of all samples of a batch of equally large groups.

    Args:
        rewards_BG: [B, G] one reward, as a tensor or as nested lists; or several, by name. None or a value that is not
            finite: could not be scored.
        weights: Per reward name its factor; without: 1 each. Rewards without a weight, or of weight 0, are not
            looked at. Only for rewards by name.
        scale: Whether to divide by standard deviations or only to subtract means.
        combine: Order of summing and normalising several rewards (see `batch_advantages`); `auto`: normalise first as
            soon as two rewards have a weight.

    Returns:
        [B, G] float64 on the CPU. NaN: the sample is out, because a weighted reward could not score it or because it is
        the only one of its group. NaN samples must not reach the loss.

    Raises:
        ValueError: if the tables are not rectangular or differ in shape, or no known reward has a weight.
    """
    if isinstance(rewards_BG, Mapping):
        tables = {name: _rows(name, table) for name, table in rewards_BG.items()}
    elif weights is not None:
        raise ValueError("weights need rewards by name")
    else:
        tables = {_ONLY: _rows(_ONLY, rewards_BG)}
    factors = dict.fromkeys(tables, 1.0) if weights is None else dict(weights)
    unknown = sorted(name for name, weight in factors.items() if weight != 0 and name not in tables)
    if unknown:
        raise ValueError(f"no rewards are given for {', '.join(unknown)}")
    shapes = {(len(rows), len(rows[0]) if rows else 0) for rows in tables.values()}
    if len(shapes) > 1:
        raise ValueError(f"rewards differ in shape: {sorted(shapes)}")
    if not any(factors.values()):
        raise ValueError("no reward has a weight other than 0")
    [(groups, samples)] = shapes
    batch = [{name: rows[index] for name, rows in tables.items()} for index in range(groups)]
    values = batch_advantages(batch, factors, scale=scale, combine=combine)
    flat = [math.nan if value is None else value for group in values for value in group]
    return torch.tensor(flat, dtype=torch.float64).reshape(groups, samples)


def _rows(name: str, table: RewardTable) -> list[list[float | None]]:
    if isinstance(table, torch.Tensor):
        if table.dim() != 2:
            raise ValueError(f"{name} needs shape [B, G], not {tuple(table.shape)}")
        return table.detach().to("cpu", torch.float64).tolist()
    rows = [list(row) for row in table]
    if len({len(row) for row in rows}) > 1:
        raise ValueError(f"the groups of {name} differ in their number of samples")
    return rows
