"""One backward pass that reaches every parameter and adds nothing.

The gradient of a step comes from many backward passes, whose number differs between ranks: groups are cut by length,
and a rank may have none. torch's reducers count on passes that are the same on all ranks. So the passes that compute
run without communication, and this one, which is the same everywhere, is what the reducers see.
"""

from __future__ import annotations

from typing import Any

import torch


class SyncPoint(torch.nn.Module):
    """Holds a model, and is called for its parameters only.

    Args:
        model: The model that runs elsewhere.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self) -> torch.Tensor:
        """A scalar 0 that depends on every trainable parameter, with a gradient of 0 to each."""
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        zero: torch.Tensor = _Touch.apply(*parameters)  # type: ignore[no-untyped-call]
        return zero


class _Touch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *parameters: torch.Tensor) -> torch.Tensor:
        ctx.like = [(parameter.shape, parameter.dtype, parameter.device) for parameter in parameters]
        return parameters[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, ...]:
        # Expanded scalars: no memory beside the gradient that is there already.
        return tuple(torch.zeros((), dtype=dtype, device=device).expand(shape) for shape, dtype, device in ctx.like)
