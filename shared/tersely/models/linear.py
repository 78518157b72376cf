"""fp32 matrix products on x86 CPUs by oneDNN instead of MKL, where that is faster.

torch multiplies fp32 matrices with MKL, which on AMD processors uses AVX2 kernels even if they have AVX-512. oneDNN,
which is in the same torch build, does not ask who made the processor: on a 2-core AMD EPYC (Zen 5) it ran the shapes
of a 135M model at 230 instead of 105 GFLOP/s per core, at the same fp32 accuracy. The rule below depends on the
machine alone, never on a measurement, so two processes of a machine always compute the same bytes.
"""

from __future__ import annotations

import functools
import platform
from typing import Any

import torch


@functools.cache
def has_fast_product() -> bool:
    """Whether this machine and this torch build have the oneDNN product and AVX-512 to gain by it."""
    return (
        platform.machine().lower() in ("x86_64", "amd64")
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def product(x: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor | None = None) -> torch.Tensor:
    """`torch.nn.functional.linear` without autograd: x [..., I] times weight^T [I, O]; views need not be contiguous."""
    if (
        has_fast_product()
        and x.device.type == weight_OI.device.type == "cpu"
        and x.dtype == weight_OI.dtype == torch.float32
        and x.numel() > 0
    ):
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight_OI, bias_O, "none", [], "")
        return result
    return torch.nn.functional.linear(x, weight_OI, bias_O)


def use_fast_linears(model: torch.nn.Module) -> int:
    """Make all plain `torch.nn.Linear` of a CPU model multiply by `product`, with gradients; returns how many.

    Names, parameters and state dict stay as they are. 0: this machine has nothing to gain.
    """
    if not has_fast_product():
        return 0
    linears = [module for module in model.modules() if type(module) is torch.nn.Linear]
    for module in linears:
        module.__class__ = _FastLinear
    return len(linears)


class _FastLinear(torch.nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not torch.is_grad_enabled():
            return product(input, self.weight, self.bias)
        result: torch.Tensor = _Product.apply(input, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return result


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(x, weight_OI)
        ctx.has_bias = bias_O is not None
        return product(x, weight_OI, bias_O)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight_OI = ctx.saved_tensors
        need_x, need_weight, need_bias = ctx.needs_input_grad
        gradient_NO = gradient.reshape(-1, gradient.shape[-1])
        x_NI = x.reshape(-1, x.shape[-1])
        grad_x = product(gradient, weight_OI.T) if need_x else None
        grad_weight_OI = product(gradient_NO.T, x_NI.T) if need_weight else None
        grad_bias_O = gradient_NO.sum(0) if ctx.has_bias and need_bias else None
        return grad_x, grad_weight_OI, grad_bias_O
