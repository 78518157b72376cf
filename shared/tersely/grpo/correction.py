"""What stands between the learner and the tokens it trains on: the denominator of the ratio and the weight beside it.

Tokens were sampled by a worker, perhaps from older weights and by other kernels. Either the clipped ratio covers the
whole way from those probabilities to the learner's (`none`), or it covers only what the learner moved since the batch
began and a bounded importance weight covers the rest (`tis`, `mask`). Never both, which would count the way twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

import torch

from tersely.grpo.inputs import LossInputs
from tersely.grpo.limits import MAX_LOG_RATIO


@dataclass(frozen=True, slots=True)
class Importance:
    """How the loss refers to the sampler; no gradient in it.

    Attributes:
        old: [N, C] logprobs in the denominator of the ratio, nats; 0 outside the mask.
        weight: [N, C] factor of each token's objective.
        masked: [N, C] bool, tokens whose weight was put to 0.
    """

    old: torch.Tensor
    weight: torch.Tensor
    masked: torch.Tensor


def importance(inputs: LossInputs, behaviour_NC: torch.Tensor) -> Importance:
    """Denominator and weights by the chosen correction, with w = exp(start - behaviour logprob) of each token.

    * `none`: the ratio is to the recorded behaviour logprobs, every weight is 1.
    * `tis`: the ratio is to the learner at the start of the batch, the weight is min(w, cap) (truncated importance
      sampling, "Your efficient RL framework secretly brings you off-policy RL training", F. Yao et al., 2025).
    * `mask`: the same ratio, the weight is w, and 0 where w > cap. Such tokens stay in the counts.

    Args:
        inputs: Of the loss.
        behaviour_NC: [N, C] recorded logprobs, 0 outside the mask.
    """
    nothing_NC = torch.zeros_like(inputs.mask)
    if inputs.correction == "none":
        return Importance(behaviour_NC, torch.ones_like(behaviour_NC), nothing_NC)
    assert inputs.start_logprobs is not None
    start_NC = torch.where(inputs.mask, inputs.start_logprobs.detach().to(behaviour_NC.dtype), 0.0)
    weight_NC = (start_NC - behaviour_NC).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    match inputs.correction:
        case "tis":
            return Importance(start_NC, weight_NC.clamp(max=inputs.correction_cap), nothing_NC)
        case "mask":
            above_NC = weight_NC > inputs.correction_cap
            return Importance(start_NC, torch.where(above_NC, 0.0, weight_NC), above_NC)
        case _:
            assert_never(inputs.correction)
