"""One token per row from logits: inverse CDF at a given uniform number, or the likeliest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tersely.errors import EngineFailed


@dataclass(frozen=True, slots=True)
class Sampled:
    """Ids of one token per row, and the natural log of softmax(logits / T) there (fp32 values)."""

    ids: list[int]
    logprobs: list[float]


def sample(logits_RV: Tensor, temperatures: Sequence[float], uniforms: Sequence[float | None]) -> Sampled:
    """Draws one token per row.

    The CDF is summed in float64 over the vocabulary in order of ids; the token is the first whose CDF exceeds the
    uniform number, so one with probability 0 is never drawn. Each row's result depends on that row alone.

    Args:
        logits_RV: Logits, rows x vocabulary, any float dtype.
        temperatures: Divisor of the logits, one per row.
        uniforms: Number in [0, 1) per row; None takes the likeliest token.

    Raises:
        EngineFailed: The logits are not finite.
    """
    device = logits_RV.device if logits_RV.device.type != "mps" else torch.device("cpu")
    scale_R1 = torch.tensor(temperatures, dtype=torch.float32, device=device).unsqueeze(1)
    logprobs_RV = torch.log_softmax(logits_RV.to(device, torch.float32) / scale_R1, dim=-1)
    ids_R1 = _draw(logprobs_RV, uniforms) if any(u is not None for u in uniforms) else None
    if any(u is None for u in uniforms):
        likeliest_R1 = logprobs_RV.argmax(dim=-1, keepdim=True)
        greedy_R1 = torch.tensor([u is None for u in uniforms], device=device).unsqueeze(1)
        ids_R1 = likeliest_R1 if ids_R1 is None else torch.where(greedy_R1, likeliest_R1, ids_R1)
    assert ids_R1 is not None
    chosen_R = logprobs_RV.gather(1, ids_R1).squeeze(1)
    if not bool(torch.isfinite(chosen_R).all()):
        raise EngineFailed("The model gave logits that are not finite.", "Look at the gradient norm.")
    return Sampled(ids=ids_R1.squeeze(1).tolist(), logprobs=chosen_R.tolist())


def _draw(logprobs_RV: Tensor, uniforms: Sequence[float | None]) -> Tensor:
    cdf_RV = logprobs_RV.double().exp_().cumsum_(dim=-1)
    total_R1 = cdf_RV[:, -1:].contiguous()
    numbers = [0.0 if u is None else u for u in uniforms]
    at_R1 = torch.tensor(numbers, dtype=torch.float64, device=cdf_RV.device).unsqueeze(1) * total_R1
    ids_R1 = torch.searchsorted(cdf_RV, at_R1, right=True)
    # Rounding may put u * total on total itself: stay on the last token that has any probability.
    last_R1 = torch.searchsorted(cdf_RV, total_R1, right=False)
    # A row of NaN has no such token; the caller looks at the logprob.
    return torch.minimum(ids_R1, last_R1).clamp_(max=logprobs_RV.shape[1] - 1)
