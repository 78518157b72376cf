"""The mathematics of group-relative policy optimization: pure functions, no model, no I/O.

Shape letters: B groups of a batch, G samples of a group, N samples of a batch or of a part of it, C positions of the
longest completion, sampled stop token included.

`advantages(rewards_BG, *, weights=None, scale="std", combine="auto") -> Tensor [B, G]`
    Rewards to advantages: minus the group's mean, over its standard deviation (ddof 1) + 1e-4. `rewards_BG` is a
    tensor [B, G], nested lists with None, or a mapping from names to such; a None or NaN takes its sample out, which
    is NaN in the result.

`policy_loss(inputs: LossInputs) -> LossOutputs`
    Policy loss of the whole batch or of a part of it. Tensors of `inputs`: logprobs [N, C] (the learner's, with
    gradient), behaviour_logprobs [N, C] (recorded), mask [N, C] bool, advantages [N], and where they are needed
    start_logprobs [N, C] and reference_logprobs [N, C]. `outputs.loss` is a scalar with gradient.

The names are loaded on first use, because `tersely.grpo.seeds` serves processes that do without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tersely.grpo.inputs import LossInputs, LossOutputs
    from tersely.grpo.loss import policy_loss
    from tersely.grpo.tensor_advantages import advantages

__all__ = ["LossInputs", "LossOutputs", "advantages", "policy_loss"]

_HOMES = {
    "LossInputs": "tersely.grpo.inputs",
    "LossOutputs": "tersely.grpo.inputs",
    "advantages": "tersely.grpo.tensor_advantages",
    "policy_loss": "tersely.grpo.loss",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
