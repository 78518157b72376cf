"""The gradient of a group, part after part, so that few activations exist at once.

A part is some whole rows, so every loss adds up over parts, those of whole sequences too. On the shared-prompt way the
prompt is forwarded once with its graph; its last hidden state, keys and values are cut off as leaves, each part runs
forward, loss and backward on them by itself, and at last one backward pass takes what the leaves have gathered through
the prompt's graph. By the chain rule that is the gradient of the group in one piece. Parts, their order and so the bits
of the sums depend on the lengths and the settings alone.

Recomputation: a part's activations already exist only while it is at work, so with `recompute` the prompt's are dropped
and made again for its backward pass, and parts stay small.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from tersely.trainer.forward import (
    RECOMPUTE_BLOCK_POSITIONS,
    CompletionLogprobs,
    ForwardSettings,
    padded_logprobs,
    padded_parts,
    prompt_states,
    shared_logprobs,
    shared_parts,
)
from tersely.trainer.groups import GroupRows

PartLoss = Callable[[list[int], CompletionLogprobs], torch.Tensor]
"""(rows of a part, their results [R, L]) -> the part's share of the batch's loss."""


def group_parts(
    prompt_tokens: int, lengths: Sequence[int], *, shared: bool, recompute: bool, budget: int
) -> list[list[int]]:
    """Which rows of a group run together.

    Args:
        prompt_tokens: Length of the prompt.
        lengths: Sampled ids per row.
        shared: Whether the prompt runs once for all rows.
        recompute: Whether the prompt's activations are dropped meanwhile.
        budget: Most positions whose activations exist at once; a part has one row at least.
    """
    limit = min(budget, RECOMPUTE_BLOCK_POSITIONS) if recompute else budget
    if not shared:
        return padded_parts(prompt_tokens, lengths, limit=limit)
    return shared_parts(lengths, limit=limit if recompute else max(1, limit - prompt_tokens))


def peak_positions(prompt_tokens: int, lengths: Sequence[int], *, shared: bool, recompute: bool, budget: int) -> int:
    """Positions whose activations exist at once at the worst moment of a group. Arguments as for `group_parts`."""
    parts = group_parts(prompt_tokens, lengths, shared=shared, recompute=recompute, budget=budget)
    if not shared:
        return max(len(rows) * (prompt_tokens + lengths[rows[0]] - 1) for rows in parts)
    largest = max(sum(lengths[row] > 1 for row in rows) * (lengths[rows[0]] - 1) for rows in parts)
    return max(prompt_tokens, largest) if recompute else prompt_tokens + largest


def backward_in_parts(
    model: torch.nn.Module,
    group: GroupRows,
    settings: ForwardSettings,
    part_loss: PartLoss,
    *,
    shared: bool,
    budget: int,
    seconds: dict[str, float],
) -> int:
    """Add a group's gradient to the model's parameters.

    Args:
        model: The policy.
        group: Rows with at least one token each.
        settings: Of the forward pass.
        part_loss: Called once per part.
        shared: Whether the prompt runs once for all rows.
        budget: Most positions whose activations exist at once.
        seconds: `forward` and `backward` are added to.

    Returns:
        How many parts there were.
    """
    clock = _Clock(seconds)
    parts = group_parts(
        group.prompt.shape[0], group.lengths, shared=shared, recompute=settings.recompute, budget=budget
    )
    if not shared:
        inner = replace(settings, recompute=False)
        for rows in parts:
            result = padded_logprobs(model, group.prompt, group.completion, group.lengths, rows, inner)
            loss = part_loss(rows, result)
            clock.lap("forward")
            loss.backward()  # type: ignore[no-untyped-call]
            del loss, result
            clock.lap("backward")
        return len(parts)

    outputs = prompt_states(model, group.prompt, settings)
    leaves = [output.detach().requires_grad_(output.requires_grad) for output in outputs]
    inner = replace(settings, recompute=False)
    for rows in parts:
        result = shared_logprobs(model, leaves, group.completion, group.lengths, rows, inner)
        loss = part_loss(rows, result)
        clock.lap("forward")
        loss.backward()  # type: ignore[no-untyped-call]
        del loss, result
        clock.lap("backward")
    gathered = [(output, leaf.grad) for output, leaf in zip(outputs, leaves, strict=True) if leaf.grad is not None]
    del leaves
    if gathered:
        torch.autograd.backward([output for output, _ in gathered], [gradient for _, gradient in gathered])
    clock.lap("backward")
    return len(parts)


class _Clock:
    def __init__(self, seconds: dict[str, float]) -> None:
        self._seconds = seconds
        self._last = time.perf_counter()

    def lap(self, phase: str) -> None:
        now = time.perf_counter()
        self._seconds[phase] += now - self._last
        self._last = now
