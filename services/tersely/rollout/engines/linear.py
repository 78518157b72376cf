"""Matrix products for the few rows of a decoding step on a CPU.

Weights that stay the same for thousands of products are worth laying out once as oneDNN wants them. Thread time on one
core of an AMD EPYC (Zen 5), fp32, 16 rows, the shapes of a 135M model, best of six on a busy machine: 35 ms for all
products of a step laid out beforehand, 52 ms by oneDNN from plain weights, 88 ms by MKL.

Where oneDNN has nothing to gain, BLAS still computes `W x^T` faster than `x W^T` for few rows (MKL on 2 cores: 2.2 to
4.1 times at 4 rows; at 16 rows 1.1 to 1.7 times). The values differ from the usual order only by rounding, and are the
same in every process for the same shape.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tersely.models.linear import has_fast_product

_LEAST_ROWS = 4
_MOST_ROWS = 16
_LAYOUT_ROWS = 64
"""Rows that the layout is chosen for; the choice is the same in every process. Measured good from 1 to 300 rows."""


@dataclass(frozen=True, slots=True)
class LinearMap:
    """Weight and bias of a linear layer, ready to multiply by; neither may change.

    Attributes:
        weight: out x in, or in oneDNN's own layout.
        bias: out, or None.
        packed: Whether it is in oneDNN's layout.
    """

    weight: Tensor
    bias: Tensor | None
    packed: bool

    def __call__(self, x_NI: Tensor) -> Tensor:
        """Tokens x in -> tokens x out."""
        if self.packed:
            result: Tensor = torch.ops.mkldnn._linear_pointwise(x_NI, self.weight, self.bias, "none", [], "")
            return result
        if x_NI.device.type == "cpu" and x_NI.shape[0] <= _MOST_ROWS:
            return _turned(x_NI, self.weight, self.bias)
        return nn.functional.linear(x_NI, self.weight, self.bias)


def make_linear(weight_OI: Tensor, bias_O: Tensor | None) -> LinearMap:
    """Lays a weight out; the tensors given are kept only where nothing is gained by that."""
    fast = weight_OI.device.type == "cpu" and weight_OI.dtype == torch.float32 and has_fast_product()
    if not fast:
        return LinearMap(weight_OI, bias_O, packed=False)
    return LinearMap(_mkldnn_layout(weight_OI), bias_O, packed=True)


def _mkldnn_layout(weight_OI: Tensor) -> Tensor:
    operator: Any = torch.ops.mkldnn._reorder_linear_weight
    laid_out: Tensor = operator(weight_OI, _LAYOUT_ROWS)
    return laid_out


def _turned(x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    rows = x_NI.shape[0]
    if rows < _LEAST_ROWS:
        x_NI = nn.functional.pad(x_NI, (0, 0, 0, _LEAST_ROWS - rows))
    out_NO = torch.mm(weight_OI, x_NI.t()).t()[:rows].contiguous()
    return out_NO if bias_O is None else out_NO.add_(bias_O)


class FewRowsLinear(nn.Linear):
    """`nn.Linear` that turns the product round when it gets few rows; for inference only."""

    def forward(self, input: Tensor) -> Tensor:
        """Rows x in -> rows x out, for any leading dimensions."""
        rows = input.numel() // self.in_features
        if rows > _MOST_ROWS or input.device.type != "cpu":
            return super().forward(input)
        output_NO = _turned(input.reshape(rows, self.in_features), self.weight, self.bias)
        return output_NO.view(*input.shape[:-1], self.out_features)


def use_few_rows_linear(model: nn.Module) -> None:
    """Makes every plain linear layer of a model one that is fast for few rows; parameters stay the same objects."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = FewRowsLinear
