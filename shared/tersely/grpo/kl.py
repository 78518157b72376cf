"""The estimate of the KL divergence from a reference policy."""

from __future__ import annotations

import torch

from tersely.grpo.limits import MAX_LOG_RATIO


def k3(learner_NC: torch.Tensor, reference_NC: torch.Tensor) -> torch.Tensor:
    """Per token exp(d) - d - 1 with d = reference - learner logprob: never negative, 0 where both agree.

    Unbiased for the KL divergence of the learner from the reference when the tokens are the learner's samples (J.
    Schulman, "Approximating KL divergence", 2020, estimator k3; used so by arXiv 2402.03300, eq. 4). Not multiplied by
    any importance weight. The gradient to the learner's logprob is 1 - exp(d); on the learner's own samples its
    expectation is the gradient of KL(reference || learner).

    Args:
        learner_NC: [N, C] nats, with gradient.
        reference_NC: [N, C] nats.

    Returns:
        [N, C] nats.
    """
    difference_NC = (reference_NC - learner_NC).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return torch.expm1(difference_NC) - difference_NC
