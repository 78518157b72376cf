"""Why a group that came back had no signal, where that is for want of a reward."""

from __future__ import annotations

from collections.abc import Mapping

from tersely.v1 import group_pb2


def why_unscored(scored: group_pb2.ScoredGroup, weights: Mapping[str, float]) -> str:
    """The reason given for a reward that counts and is absent for at least half of the completions; empty: none is.

    Args:
        scored: The group.
        weights: Of the rewards; those of weight 0 do not count.
    """
    absent: dict[str, list[str]] = {}
    for completion in scored.rewards:
        for reward in completion.rewards:
            if weights.get(reward.name) and not reward.HasField("value"):
                absent.setdefault(reward.name, []).append(reward.absent_reason)
    for name, reasons in absent.items():
        if 2 * len(reasons) >= len(scored.rewards):
            return f"{name}: {reasons[-1] or 'no reason given'}"
    return ""
