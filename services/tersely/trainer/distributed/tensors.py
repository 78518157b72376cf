"""Whole tensors from shards and back; a plain tensor is both."""

from __future__ import annotations

from typing import Any, cast

import torch


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor that may be sharded; collective if it is."""
    gather: Any = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else cast(torch.Tensor, gather())


def part_like(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A copy of a whole tensor on the device of another, sharded as that one is; every rank has the whole tensor."""
    on_device = tensor.to(like.device, copy=True)
    if not hasattr(like, "full_tensor"):
        return on_device
    from torch.distributed.tensor import DTensor, distribute_tensor

    placed = cast(DTensor, like)
    return distribute_tensor(on_device, placed.device_mesh, placed.placements, src_data_rank=None)
