"""Hidden states -> log-probabilities of the sampled tokens, without ever holding all logits.

Shape letters: N positions, H hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch

from tersely.models.linear import product

KEPT_BYTES = 128 << 20
"""Probabilities that are kept for the backward pass, at most, unless one chunk alone is more."""


def kept_chunks(chunk_tokens: int, vocabulary: int) -> int:
    """How many chunks of logits keep their fp32 probabilities: what `KEPT_BYTES` hold, and one at least."""
    return max(1, KEPT_BYTES // (4 * chunk_tokens * vocabulary))


def sampled_logprobs(
    hidden_NH: torch.Tensor,
    weight_VH: torch.Tensor,
    bias_V: torch.Tensor | None,
    ids_N: torch.Tensor,
    *,
    temperature: float,
    chunk_tokens: int,
    compute_dtype: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of one id per position, and the entropy of its distribution, in chunks of positions.

    The softmax is in fp32 (float64 if the hidden states are). The last chunks, the first ones that the backward pass
    reaches, keep their probabilities (`kept_chunks`); the others compute their logits again there.

    Args:
        hidden_NH: Final hidden states; gradients flow into them.
        weight_VH: Weight of the output head; gradients flow into it.
        bias_V: Its bias, if it has one.
        ids_N: The sampled ids.
        temperature: Divides the logits.
        chunk_tokens: Positions whose logits exist at once.
        compute_dtype: Type of the matrix products; none: that of the hidden states.

    Returns:
        logprobs [N] with gradient and entropy [N] in nats without, both fp32 or wider.
    """
    logprobs, entropies = [], []
    starts = range(0, hidden_NH.shape[0], chunk_tokens)
    recomputed = len(starts) - kept_chunks(chunk_tokens, weight_VH.shape[0])
    for number, start in enumerate(starts):
        part = slice(start, start + chunk_tokens)
        keep = number >= recomputed
        logprob_N, entropy_N = _SampledLogprob.apply(  # type: ignore[no-untyped-call]
            hidden_NH[part], weight_VH, bias_V, ids_N[part], temperature, keep, compute_dtype
        )
        logprobs.append(logprob_N)
        entropies.append(entropy_N)
    if not logprobs:
        empty = hidden_NH.sum(-1)
        return empty, empty.detach()
    return torch.cat(logprobs), torch.cat(entropies)


class _SampledLogprob(torch.autograd.Function):
    """One chunk. d logprob / d logits = (onehot - softmax) / temperature, so nothing but the softmax is needed."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: torch.Tensor,
        weight_VH: torch.Tensor,
        bias_V: torch.Tensor | None,
        ids_N: torch.Tensor,
        temperature: float,
        keep: bool,
        compute_dtype: torch.dtype | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        compute_dtype = compute_dtype or hidden_NH.dtype
        logprob_NV = _log_softmax(hidden_NH, weight_VH, bias_V, temperature, compute_dtype)
        logprob_N = logprob_NV.gather(-1, ids_N[:, None])[:, 0]
        probability_NV = logprob_NV.exp()
        entropy_N = -torch.linalg.vecdot(probability_NV, logprob_NV)
        kept = [probability_NV] if keep and any(ctx.needs_input_grad) else []
        ctx.save_for_backward(hidden_NH, weight_VH, bias_V, ids_N, *kept)
        ctx.temperature, ctx.compute_dtype = temperature, compute_dtype
        ctx.mark_non_differentiable(entropy_N)
        return logprob_N, entropy_N

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient_N: torch.Tensor, _: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        hidden_NH, weight_VH, bias_V, ids_N, *kept = ctx.saved_tensors
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        gradient_N1 = gradient_N[:, None] / ctx.temperature
        if kept:
            # Not in place: the same graph may be walked twice (retain_graph).
            gradient_NV = kept[0] * -gradient_N1
        else:
            gradient_NV = _log_softmax(hidden_NH, weight_VH, bias_V, ctx.temperature, ctx.compute_dtype)
            gradient_NV = gradient_NV.exp_().mul_(-gradient_N1)
        # Each row has one sampled id, so no two additions meet and the result does not depend on threads.
        gradient_NV.scatter_add_(-1, ids_N[:, None], gradient_N1)
        grad_bias_V = gradient_NV.sum(0).to(bias_V.dtype) if bias_V is not None and need_bias else None
        gradient_NV = gradient_NV.to(ctx.compute_dtype)
        grad_hidden_NH = grad_weight_VH = None
        if need_hidden:
            grad_hidden_NH = product(gradient_NV, weight_VH.to(ctx.compute_dtype).T).to(hidden_NH.dtype)
        if need_weight:
            grad_weight_VH = product(gradient_NV.T, hidden_NH.to(ctx.compute_dtype).T).to(weight_VH.dtype)
        return grad_hidden_NH, grad_weight_VH, grad_bias_V, None, None, None, None


def _log_softmax(
    hidden_NH: torch.Tensor,
    weight_VH: torch.Tensor,
    bias_V: torch.Tensor | None,
    temperature: float,
    compute_dtype: torch.dtype,
) -> torch.Tensor:
    logits_NV = product(hidden_NH.to(compute_dtype), weight_VH.to(compute_dtype))
    if logits_NV.dtype in (torch.bfloat16, torch.float16):
        logits_NV = logits_NV.float()
    if bias_V is not None:
        logits_NV += bias_V
    if temperature != 1.0:
        logits_NV /= temperature
    return torch.log_softmax(logits_NV, -1)
