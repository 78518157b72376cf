"""One token per row from logits: inverse CDF at a given uniform number, or the likeliest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from tersely.errors import EngineFailed

_BLOCK = 128
"""Ids per block of the CDF."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """Ids of one token per row, and the natural log of softmax(logits / T) there (fp32 values)."""

    ids: list[int]
    logprobs: list[float]


def sample(logits_RV: Tensor, temperatures: Sequence[float], uniforms: Sequence[float | None]) -> Sampled:
    """Draws one token per row.

    The token is the first, in order of ids, whose CDF exceeds the uniform number. The CDF is that of fp32
    probabilities, summed in float64 over blocks of ids and then inside one block, so that no float64 copy of the
    vocabulary is made; a token of probability 0 is never drawn. Each row's result depends on that row alone.

    Args:
        logits_RV: Logits, rows x vocabulary, any float dtype.
        temperatures: Divisor of the logits, one per row.
        uniforms: Number in [0, 1) per row; None takes the likeliest token.

    Raises:
        EngineFailed: The logits are not finite.
    """
    device = logits_RV.device if logits_RV.device.type != "mps" else torch.device("cpu")
    logits_RV = logits_RV.to(device, torch.float32)
    if any(temperature != 1.0 for temperature in temperatures):
        logits_RV = logits_RV / torch.tensor(temperatures, dtype=torch.float32, device=device)[:, None]
    probabilities_RV = torch.softmax(logits_RV, dim=-1)
    ids_R = _draw(probabilities_RV, uniforms) if any(u is not None for u in uniforms) else None
    if any(u is None for u in uniforms):
        likeliest_R = logits_RV.argmax(dim=-1)
        greedy_R = torch.tensor([u is None for u in uniforms], device=device)
        ids_R = likeliest_R if ids_R is None else torch.where(greedy_R, likeliest_R, ids_R)
    assert ids_R is not None
    chosen_R = probabilities_RV.gather(1, ids_R[:, None])[:, 0].log()
    if not bool(torch.isfinite(chosen_R).all()):
        raise EngineFailed("The model gave logits that are not finite.", "Look at the gradient norm.")
    return Sampled(ids=ids_R.tolist(), logprobs=chosen_R.tolist())


def _draw(probabilities_RV: Tensor, uniforms: Sequence[float | None]) -> Tensor:
    rows, vocabulary = probabilities_RV.shape
    if vocabulary % _BLOCK:
        probabilities_RV = functional.pad(probabilities_RV, (0, _BLOCK - vocabulary % _BLOCK))
    blocks_RBV = probabilities_RV.view(rows, -1, _BLOCK)
    sums_RB = blocks_RBV.sum(-1).double()
    numbers = [0.0 if u is None else u for u in uniforms]
    cdf_RB = sums_RB.cumsum(-1)
    at_R1 = torch.tensor(numbers, dtype=torch.float64, device=cdf_RB.device)[:, None] * cdf_RB[:, -1:]
    block_R1 = _first_above(cdf_RB, at_R1)
    rest_R1 = at_R1 - (cdf_RB.gather(1, block_R1) - sums_RB.gather(1, block_R1))
    row_R = torch.arange(rows, device=cdf_RB.device)
    inside_R1 = _first_above(blocks_RBV[row_R, block_R1[:, 0]].double().cumsum(-1), rest_R1)
    # Of a row of NaN any id will do; the caller looks at its logprob.
    return (block_R1 * _BLOCK + inside_R1)[:, 0].clamp_(max=vocabulary - 1)


def _first_above(cdf_RX: Tensor, at_R1: Tensor) -> Tensor:
    """First place whose CDF exceeds the number; at most the last one that adds to it."""
    first_R1 = torch.searchsorted(cdf_RX, at_R1, right=True)
    # Rounding may put the number on the total itself.
    last_R1 = torch.searchsorted(cdf_RX, cdf_RX[:, -1:].contiguous(), right=False)
    return torch.minimum(first_R1, last_R1).clamp_(max=cdf_RX.shape[1] - 1)
