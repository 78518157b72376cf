"""score_batch: the one function behind the ring's consumer, the gRPC door and the jobs of `tersely score`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real

import structlog

from tersely.scorer.rewards.base import ReasonedValues, Reward, RewardInput
from tersely.v1 import common_pb2, group_pb2

MOST_REASON_CHARACTERS = 300
"""Of what a reward raised, in its reason for each value; the log has all of it."""

log = structlog.get_logger()


def completion_length(completion: group_pb2.Completion) -> int:
    """Tokens of a completion: the sampled ids without the stop token; all of them if it was cut off."""
    stopped = completion.finish_reason == common_pb2.FINISH_REASON_STOP
    return len(completion.token_ids) - (1 if stopped else 0)


def inputs_of(group: group_pb2.CompletionGroup) -> list[RewardInput]:
    """What the rewards see of a generated group, one item per completion in order."""
    prompt = group.prompt
    return [
        RewardInput(
            text=completion.text,
            token_count=completion_length(completion),
            stopped=completion.finish_reason == common_pb2.FINISH_REASON_STOP,
            target_tokens=prompt.target_tokens,
            reference=prompt.reference,
            document=prompt.document,
            group_key=prompt.group_id,
        )
        for completion in group.completions
    ]


def score_batch(inputs: Sequence[RewardInput], rewards: Sequence[Reward]) -> list[list[group_pb2.RewardValue]]:
    """Scores a batch with every reward.

    A reward that raises loses only the groups it raises for: their values are absent, with the error as the reason.

    Args:
        inputs: Items of one or more groups (`group_key`).
        rewards: Rewards in the order wanted.

    Returns:
        Per item, one value per reward in that order. A value is finite or absent with a reason.
    """
    columns = [_column(reward, inputs) for reward in rewards]
    return [list(row) for row in zip(*columns, strict=True)] if columns else [[] for _ in inputs]


def _column(reward: Reward, inputs: Sequence[RewardInput]) -> list[group_pb2.RewardValue]:
    groups: dict[str, list[int]] = {}
    for index, item in enumerate(inputs):
        groups.setdefault(item.group_key, []).append(index)
    values = _attempt(reward, inputs, last=len(groups) == 1)
    if values is not None:
        return values
    column: dict[int, group_pb2.RewardValue] = {}
    for indices in groups.values():
        column.update(zip(indices, _attempt(reward, [inputs[i] for i in indices], last=True) or (), strict=True))
    return [column[index] for index in range(len(inputs))]


def _attempt(reward: Reward, inputs: Sequence[RewardInput], *, last: bool) -> list[group_pb2.RewardValue] | None:
    """Values of one call; None when it raised and smaller calls are still to be tried."""
    try:
        values = reward.score(inputs)
        if len(values) != len(inputs):
            raise ValueError(f"gave {len(values)} values for {len(inputs)} completions")
        reasons = values.reasons if isinstance(values, ReasonedValues) else {}
        return [_as_message(reward, value, reasons.get(index)) for index, value in enumerate(values)]
    except Exception as error:
        if not last:
            return None
        log.exception("reward_raised", reward=reward.name, group=inputs[0].group_key)
        reason = f"{type(error).__name__}: {error}"[:MOST_REASON_CHARACTERS]
        return [group_pb2.RewardValue(name=reward.name, absent_reason=reason) for _ in inputs]


def _as_message(reward: Reward, value: float | None, reason: str | None = None) -> group_pb2.RewardValue:
    if value is None:
        return group_pb2.RewardValue(name=reward.name, absent_reason=reason or reward.absent_reason)
    if not isinstance(value, Real):  # float() would take the text "0.5", too
        raise TypeError(f"gave {str(value)[:80]!r} ({type(value).__name__}), which is no number")
    number = float(value)
    if not math.isfinite(number):
        return group_pb2.RewardValue(name=reward.name, absent_reason=f"the value {number} is not finite")
    return group_pb2.RewardValue(name=reward.name, value=number)
