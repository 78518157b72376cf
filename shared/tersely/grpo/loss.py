"""The policy loss as a pure function of tensors.

Shape letters: G samples of a group (or of several), C positions of the longest completion, sampled stop token included.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

MAX_LOG_RATIO = 20.0
"""Log-ratios are held within +-20, so that one absurd token gives a large loss and not inf or NaN."""


@dataclass(frozen=True, slots=True)
class LossInputs:
    """What the loss of some samples depends on.

    Attributes:
        logprobs: [G, C] log-probability of each sampled token under the learner; carries the gradient.
        behaviour_logprobs: [G, C] the same as recorded when the token was sampled.
        mask: [G, C] bool, True on sampled tokens (made from lengths, never from ids).
        advantages: [G] one number per sample.
    """

    logprobs: torch.Tensor
    behaviour_logprobs: torch.Tensor
    mask: torch.Tensor
    advantages: torch.Tensor


@dataclass(frozen=True, slots=True)
class LossOutputs:
    """The loss and what health needs; the sums add up over the parts of a batch.

    Attributes:
        loss: Scalar, this part's share of the batch's loss.
        clipped_tokens: Scalar, tokens whose gradient the clip removed.
        mismatch_sum: Scalar, sum over tokens of |learner - behaviour logprob|, nats.
        tokens: Scalar, tokens under the mask.
    """

    loss: torch.Tensor
    clipped_tokens: torch.Tensor
    mismatch_sum: torch.Tensor
    tokens: torch.Tensor


def dapo_loss(inputs: LossInputs, *, clip_low: float, clip_high: float, token_count: int) -> LossOutputs:
    """Clipped policy gradient, averaged over the tokens of the whole batch (DAPO, arXiv 2503.14476).

    Per token -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A), r = exp(learner - recorded behaviour logprob); summed
    here and divided by `token_count`, so parts of a batch add up to the loss of the batch in one piece.

    Args:
        inputs: Tensors of some or all samples of the batch.
        clip_low: How far the ratio may fall below 1.
        clip_high: How far the ratio may rise above 1.
        token_count: Tokens under the mask in the whole batch, over all its parts and ranks.

    Raises:
        ValueError: if shapes disagree or the token count is not positive.
    """
    _check(inputs, token_count)
    mask_GC = inputs.mask
    difference_GC = torch.where(mask_GC, inputs.logprobs - inputs.behaviour_logprobs, 0.0)
    ratio_GC = difference_GC.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    advantages_G1 = inputs.advantages[:, None].to(ratio_GC.dtype)
    clipped_GC = ratio_GC.clamp(1 - clip_low, 1 + clip_high)
    gain_GC = torch.minimum(ratio_GC * advantages_G1, clipped_GC * advantages_G1)
    loss = -torch.where(mask_GC, gain_GC, 0.0).sum() / token_count

    with torch.no_grad():
        too_high_GC = (ratio_GC > 1 + clip_high) & (advantages_G1 > 0)
        too_low_GC = (ratio_GC < 1 - clip_low) & (advantages_G1 < 0)
        return LossOutputs(
            loss=loss,
            clipped_tokens=((too_high_GC | too_low_GC) & mask_GC).sum(),
            mismatch_sum=difference_GC.detach().abs().sum(),
            tokens=mask_GC.sum(),
        )


def _check(inputs: LossInputs, token_count: int) -> None:
    shape = inputs.logprobs.shape
    if inputs.behaviour_logprobs.shape != shape or inputs.mask.shape != shape:
        raise ValueError(f"logprobs {tuple(shape)}, behaviour and mask must have one shape")
    if inputs.advantages.shape != shape[:1]:
        raise ValueError(f"advantages need shape {tuple(shape[:1])}, not {tuple(inputs.advantages.shape)}")
    if inputs.mask.dtype != torch.bool:
        raise ValueError(f"the mask must be bool, not {inputs.mask.dtype}")
    if token_count < 1:
        raise ValueError("a batch without tokens has no loss")
