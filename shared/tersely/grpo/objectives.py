"""What each token wants to be larger: the clipped objectives of the losses."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tersely.grpo.inputs import LossInputs
from tersely.grpo.limits import MAX_LOG_RATIO


@dataclass(frozen=True, slots=True)
class Objective:
    """Of each token; values outside the mask mean nothing.

    Attributes:
        gain: [N, C] to be made larger, with gradient.
        clipped: [N, C] bool, tokens that the clip acted on.
    """

    gain: torch.Tensor
    clipped: torch.Tensor


def objective(inputs: LossInputs, learner_NC: torch.Tensor, old_NC: torch.Tensor) -> Objective:
    """The objective of each token by the chosen loss, with r = exp(learner - old logprob) and advantage A.

    * `dapo`, `grpo`, `dr_grpo`: min(r A, clip(r, 1 - clip_low, 1 + clip_high) A).
    * `gspo` (arXiv 2507.18071, eq. 5 to 7): the same with one ratio per sample, s = exp(mean over its tokens of
      log r), which carries the gradient to all its tokens. The paper clips at 3e-4 and 4e-4: s moves far less than r.
    * `cispo` (MiniMax-M1, arXiv 2506.13585, eq. 4 and 5): detached min(r, 1 + clip_high) times A times the learner's
      logprob. As in the paper's experiments there is no lower bound: `clip_low` is not used.

    Args:
        inputs: Of the loss.
        learner_NC: [N, C] with gradient, 0 outside the mask.
        old_NC: [N, C] denominator of the ratio, 0 outside the mask.
    """
    log_ratio_NC = learner_NC - old_NC
    if inputs.loss == "gspo":
        lengths_N1 = inputs.mask.sum(dim=1, keepdim=True).clamp(min=1)
        log_ratio_NC = (log_ratio_NC.sum(dim=1, keepdim=True) / lengths_N1).expand_as(log_ratio_NC)
    ratio_NC = log_ratio_NC.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    advantages_N1 = inputs.advantages[:, None].to(ratio_NC.dtype)
    high = 1 + inputs.clip_high
    if inputs.loss == "cispo":
        ratio_NC = ratio_NC.detach()
        return Objective(ratio_NC.clamp(max=high) * advantages_N1 * learner_NC, ratio_NC > high)
    low = 1 - inputs.clip_low
    gain_NC = torch.minimum(ratio_NC * advantages_N1, ratio_NC.clamp(low, high) * advantages_N1)
    with torch.no_grad():
        clipped_NC = ((ratio_NC > high) & (advantages_N1 > 0)) | ((ratio_NC < low) & (advantages_N1 < 0))
    return Objective(gain_NC, clipped_NC)
