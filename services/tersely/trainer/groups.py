"""A training group as it was sampled and scored, and the same as tensors of what can be trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tersely.grpo.group_advantages import Advantages
from tersely.types import GroupId


@dataclass(frozen=True, slots=True)
class TrainingGroup:
    """One prompt and its samples, as they were sampled and scored.

    Attributes:
        group_id: Names the group in the health of the step.
        prompt_ids: At least one.
        completion_ids: Per sample its sampled ids; the stop token if one was sampled.
        behaviour_logprobs: Per sampled id its log-probability when it was sampled, nats.
        rewards: Per reward name a number or None (could not be scored) per sample.
    """

    group_id: GroupId
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[tuple[int, ...], ...]
    behaviour_logprobs: tuple[tuple[float, ...], ...]
    rewards: dict[str, tuple[float | None, ...]]


@dataclass(slots=True)
class GroupRows:
    """The samples of a group that have an advantage and at least one token. R rows, C longest completion.

    Attributes:
        prompt: [P] prompt ids.
        completion: [R, C] sampled ids, right-padded with 0.
        lengths: Sampled ids per row.
        behaviour: [R, C] recorded log-probabilities, fp32, 0 beyond a row's length.
        mask: [R, C] True on sampled ids, made from the lengths.
        advantages: [R] fp32.
        start: [R, C] the learner's log-probabilities at the start of the batch, once they are known.
        reference: [R, C] those of the reference policy, where one is asked for.
        mismatch: Sum of |learner - behaviour|, nats, at the start of the batch, once it is known; and over how many
            tokens.
    """

    prompt: torch.Tensor
    completion: torch.Tensor
    lengths: list[int]
    behaviour: torch.Tensor
    mask: torch.Tensor
    advantages: torch.Tensor
    start: torch.Tensor | None = None
    reference: torch.Tensor | None = None
    mismatch: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True, slots=True)
class BatchCounts:
    """What a batch is divided by, over all its groups, parts and ranks.

    Attributes:
        tokens: Tokens in the loss.
        samples: Samples in the loss.
    """

    tokens: int
    samples: int


def batch_counts(batch: Sequence[TrainingGroup], advantages: Sequence[Advantages]) -> BatchCounts:
    """Tokens and samples that have an advantage; a sample without tokens is none."""
    lengths = [
        len(ids)
        for group, values in zip(batch, advantages, strict=True)
        for ids, value in zip(group.completion_ids, values, strict=True)
        if value is not None and ids
    ]
    return BatchCounts(sum(lengths), len(lengths))


def group_rows(group: TrainingGroup, advantages: Advantages, device: torch.device) -> GroupRows | None:
    """Tensors of a group on a device; None if no sample can be trained on."""
    kept = [row for row, value in enumerate(advantages) if value is not None and group.completion_ids[row]]
    if not kept:
        return None
    lengths = [len(group.completion_ids[row]) for row in kept]
    positions_C = torch.arange(max(lengths), device=device)
    return GroupRows(
        prompt=torch.tensor(group.prompt_ids, dtype=torch.long, device=device),
        completion=_pad([group.completion_ids[row] for row in kept], torch.long, device),
        lengths=lengths,
        behaviour=_pad([group.behaviour_logprobs[row] for row in kept], torch.float32, device),
        mask=positions_C < torch.tensor(lengths, device=device)[:, None],
        advantages=torch.tensor([advantages[row] for row in kept], dtype=torch.float32, device=device),
    )


def check_group(group: TrainingGroup) -> None:
    """Refuse a group whose parts differ in length.

    Raises:
        ValueError: naming the group.
    """
    samples = len(group.completion_ids)
    sizes = {len(group.behaviour_logprobs), *(len(values) for values in group.rewards.values())}
    if not group.prompt_ids or sizes != {samples}:
        raise ValueError(f"group {group.group_id}: prompt, completions, logprobs and rewards do not fit together")
    for ids, logprobs in zip(group.completion_ids, group.behaviour_logprobs, strict=True):
        if len(ids) != len(logprobs):
            raise ValueError(f"group {group.group_id}: {len(ids)} sampled ids have {len(logprobs)} logprobs")


def _pad(rows: Sequence[Sequence[float]], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], dtype=dtype, device=device)
