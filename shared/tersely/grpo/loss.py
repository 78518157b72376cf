"""The policy loss: objective, correction and KL of each token, added up as the chosen loss says.

Shape letters: N samples of a batch or of a part of it, C positions of the longest completion, sampled stop included.
"""

from __future__ import annotations

from typing import assert_never

import torch

from tersely.grpo.correction import importance
from tersely.grpo.inputs import LossInputs, LossOutputs, check
from tersely.grpo.kl import k3
from tersely.grpo.objectives import objective

__all__ = ["LossInputs", "LossOutputs", "policy_loss"]


def policy_loss(inputs: LossInputs) -> LossOutputs:
    """Loss of a batch, or of a part of it, by the formulas below; minimising it improves the policy.

    Per token, with advantage A of its sample:

        token loss = -w * objective(r, A) + kl_coefficient * k3

    The ratio r and the weight w are set by the correction (see `importance`), the objective by the loss (see
    `objective`): the clipped r A for `dapo`, `grpo` and `dr_grpo`, with the ratio of the whole sequence for `gspo`, and
    the clipped and detached r times A times the logprob for `cispo`. How token losses are added up:

    * `dapo` (arXiv 2503.14476, eq. 8), `cispo` (MiniMax-M1, arXiv 2506.13585, eq. 4): sum over all tokens of the batch
      / token_count.
    * `grpo` (arXiv 2402.03300, eq. 3), `gspo` (arXiv 2507.18071, eq. 5): mean over the tokens of each sample, then sum
      over samples / sample_count.
    * `dr_grpo` (arXiv 2503.20783): sum over all tokens / (sample_count * max_completion_tokens), so that neither the
      length of a sample nor that of the batch matters.

    The papers average over the groups of a batch, which are equally large; here all samples (or tokens) of the batch
    count alike also where some were taken out. A sample without tokens adds 0, but counts unless `sample_count` leaves
    it out.

    Args:
        inputs: Tensors of some or all samples of the batch, and the settings.

    Returns:
        Scalars; `loss` carries the gradient to `inputs.logprobs`, which is exactly 0 outside the mask.

    Raises:
        ValueError: if the inputs do not fit together.
    """
    check(inputs)
    mask_NC = inputs.mask
    learner_NC = torch.where(mask_NC, inputs.logprobs, 0.0)
    behaviour_NC = torch.where(mask_NC, inputs.behaviour_logprobs.detach().to(learner_NC.dtype), 0.0)
    weights = importance(inputs, behaviour_NC)
    gain = objective(inputs, learner_NC, weights.old)
    token_loss_NC = -weights.weight * gain.gain
    kl_NC = torch.zeros_like(learner_NC)
    if inputs.kl_coefficient != 0:
        assert inputs.reference_logprobs is not None
        reference_NC = inputs.reference_logprobs.detach().to(learner_NC.dtype)
        kl_NC = k3(learner_NC, torch.where(mask_NC, reference_NC, 0.0))
        token_loss_NC = token_loss_NC + inputs.kl_coefficient * kl_NC
    loss = _aggregate(inputs, torch.where(mask_NC, token_loss_NC, 0.0))
    with torch.no_grad():
        return LossOutputs(
            loss=loss,
            clipped_tokens=(gain.clipped & mask_NC).sum(),
            mismatch_sum=(learner_NC - behaviour_NC).abs().sum(),
            tokens=mask_NC.sum(),
            kl_sum=kl_NC.detach().sum(),
            correction_sum=torch.where(mask_NC, weights.weight, 0.0).sum(),
            masked_tokens=(weights.masked & mask_NC).sum(),
        )


def _aggregate(inputs: LossInputs, token_loss_NC: torch.Tensor) -> torch.Tensor:
    """Token losses, 0 outside the mask, to the batch's loss."""
    samples = inputs.sample_count or max(1, token_loss_NC.shape[0])
    match inputs.loss:
        case "dapo" | "cispo":
            return token_loss_NC.sum() / (inputs.token_count or inputs.mask.sum().clamp(min=1))
        case "grpo" | "gspo":
            lengths_N = inputs.mask.sum(dim=1).clamp(min=1)
            return (token_loss_NC.sum(dim=1) / lengths_N).sum() / samples
        case "dr_grpo":
            longest = inputs.max_completion_tokens or max(1, token_loss_NC.shape[1])
            return token_loss_NC.sum() / (samples * longest)
        case _:
            assert_never(inputs.loss)
