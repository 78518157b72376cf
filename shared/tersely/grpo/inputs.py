"""What the policy loss takes and gives.

Shape letters: N samples of a batch or of a part of it, C positions of the longest completion, sampled stop included.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

Loss = Literal["dapo", "grpo", "dr_grpo", "gspo", "cispo"]
Correction = Literal["none", "tis", "mask"]


@dataclass(frozen=True, slots=True)
class LossInputs:
    """What the loss of some samples depends on.

    The three counts are those of the whole batch, over all its parts and ranks: given them, the losses (and with them
    the gradients) of the parts add up to those of the batch in one piece. Left out, the given samples are the batch.

    Attributes:
        logprobs: [N, C] log-probability of each sampled token under the learner, nats; carries the gradient.
        behaviour_logprobs: [N, C] the same as recorded when the token was sampled.
        mask: [N, C] bool, True on sampled tokens (made from lengths, never from ids). What the other tensors hold
            elsewhere is never looked at.
        advantages: [N] one finite number per sample: samples without an advantage are taken out before.
        start_logprobs: [N, C] the learner's at the start of the batch, before its first optimizer step; needed by the
            corrections `tis` and `mask` and used by nothing else.
        reference_logprobs: [N, C] those of the reference policy; needed when `kl_coefficient` is not 0.
        loss: Objective and aggregation.
        clip_low: How far the ratio may fall below 1.
        clip_high: How far the ratio may rise above 1.
        correction: What stands for the difference between learner and sampler.
        correction_cap: Importance weights are truncated or masked above it.
        kl_coefficient: Weight of the KL divergence from the reference.
        token_count: Tokens under the mask in the batch (`dapo`, `cispo`).
        sample_count: Samples of the batch (`grpo`, `dr_grpo`, `gspo`).
        max_completion_tokens: The constant of `dr_grpo`: how long a completion may become. Left out, C.
    """

    logprobs: torch.Tensor
    behaviour_logprobs: torch.Tensor
    mask: torch.Tensor
    advantages: torch.Tensor
    start_logprobs: torch.Tensor | None = None
    reference_logprobs: torch.Tensor | None = None
    loss: Loss = "dapo"
    clip_low: float = 0.2
    clip_high: float = 0.28
    correction: Correction = "none"
    correction_cap: float = 2.0
    kl_coefficient: float = 0.0
    token_count: int | None = None
    sample_count: int | None = None
    max_completion_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class LossOutputs:
    """The loss and what health needs: scalars that add up over the parts of a batch; only the loss has a gradient.

    Attributes:
        loss: This part's share of the batch's loss, KL term included.
        clipped_tokens: Tokens whose gradient the clip removed; for `cispo`, which removes none, tokens whose weight it
            cut.
        mismatch_sum: Sum over tokens of |learner - behaviour logprob|, nats.
        tokens: Tokens under the mask.
        kl_sum: Sum over tokens of the k3 estimate of the KL divergence from the reference, nats, without its
            coefficient; 0 if no coefficient asked for it.
        correction_sum: Sum over tokens of the importance weights that the loss was multiplied by; 1 for each token
            without a correction.
        masked_tokens: Tokens that the correction `mask` took out of the loss.
    """

    loss: torch.Tensor
    clipped_tokens: torch.Tensor
    mismatch_sum: torch.Tensor
    tokens: torch.Tensor
    kl_sum: torch.Tensor
    correction_sum: torch.Tensor
    masked_tokens: torch.Tensor


def check(inputs: LossInputs) -> None:
    """Refuse inputs that do not fit together.

    Raises:
        ValueError: if shapes disagree, the mask is not bool, an advantage is not finite, logprobs that a setting needs
            are missing, or a count is not positive.
    """
    shape = inputs.logprobs.shape
    if len(shape) != 2:
        raise ValueError(f"logprobs need the shape [N, C], not {tuple(shape)}")
    for name in ("behaviour_logprobs", "mask", "start_logprobs", "reference_logprobs"):
        tensor = getattr(inputs, name)
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"{name} needs the shape of logprobs {tuple(shape)}, not {tuple(tensor.shape)}")
    if inputs.advantages.shape != shape[:1]:
        raise ValueError(f"advantages need shape {tuple(shape[:1])}, not {tuple(inputs.advantages.shape)}")
    if inputs.mask.dtype != torch.bool:
        raise ValueError(f"the mask must be bool, not {inputs.mask.dtype}")
    if not torch.isfinite(inputs.advantages).all():
        raise ValueError("an advantage is not finite: take samples without one out of the batch")
    if inputs.correction != "none" and inputs.start_logprobs is None:
        raise ValueError(f"the correction {inputs.correction} needs start_logprobs")
    if inputs.kl_coefficient != 0 and inputs.reference_logprobs is None:
        raise ValueError("a KL coefficient needs reference_logprobs")
    for name in ("token_count", "sample_count", "max_completion_tokens"):
        count = getattr(inputs, name)
        if count is not None and count < 1:
            raise ValueError(f"{name} must be positive: a batch without tokens has no loss")
