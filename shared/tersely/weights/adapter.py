"""Low-rank adapters as they travel, and the one way in which trainer and workers merge them.

W = bf16(fp32(W0 + scale * B A)) with the sum in float64. Products of float32 are exact there and sums wrong in the last
of 53 bits, so that processors, libraries and thread counts that add up in another order still round to the same
bfloat16, but for about one value in 10^12; the hash of the tensor finds that one.

Shape letters: O outputs and I inputs of a layer, R rank.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tersely.v1 import checkpoint_pb2

if TYPE_CHECKING:
    from torch import Tensor

_BLOCK_VALUES = 1 << 21
"""Values of W merged at a time: 16 MiB in float64."""
_MOST_RANK = 1 << 16


@dataclass(frozen=True, slots=True)
class AdapterLayer:
    """What changes one weight.

    Attributes:
        tensor: Name of the weight [O, I].
        down: A [R, I], fp32.
        up: B [O, R], fp32.
        scale: What B A is multiplied by.
    """

    tensor: str
    down: Tensor
    up: Tensor
    scale: float


@dataclass(frozen=True, slots=True)
class PackedAdapter:
    """An adapter as it is sent.

    Attributes:
        layout: Its layers.
        data: Per layer A, then B, raw little-endian float32.
        sha256: SHA-256, hex, of `data`.
    """

    layout: checkpoint_pb2.Adapter
    data: bytes
    sha256: str

    @classmethod
    def pack(cls, layers: Sequence[AdapterLayer]) -> PackedAdapter:
        """Writes layers one after the other."""
        layout, data = checkpoint_pb2.Adapter(), bytearray()
        for layer in layers:
            layout.layers.add(tensor=layer.tensor, rank=layer.up.shape[1], scale=layer.scale)
            for factor in (layer.down, layer.up):
                data += factor.contiguous().numpy().astype("<f4", copy=False).tobytes()
        return cls(layout, bytes(data), hashlib.sha256(data).hexdigest())


def merge_into(target_OI: Tensor, base_OI: Tensor, down_RI: Tensor, up_OR: Tensor, scale: float) -> None:
    """Writes bf16(base + scale * B A) into a tensor of any float dtype, on the target's device.

    A device without float64 (mps) has it done by the CPU.
    """
    import torch

    device = base_OI.device if base_OI.device.type != "mps" else torch.device("cpu")
    down, up = down_RI.to(device, torch.float64), up_OR.to(device, torch.float64)
    rows = max(1, _BLOCK_VALUES // max(1, base_OI.shape[1]))
    for begin in range(0, base_OI.shape[0], rows):
        block = base_OI[begin : begin + rows].to(device, torch.float64)
        block.addmm_(up[begin : begin + rows], down, alpha=scale)
        target_OI[begin : begin + rows].copy_(block.to(torch.float32).to(torch.bfloat16))


def adapter_bytes(adapter: checkpoint_pb2.Adapter, tensors: Sequence[checkpoint_pb2.TensorManifest]) -> int:
    """Length of an adapter's payload.

    Args:
        adapter: Its layout.
        tensors: Those of the weights it is part of.

    Raises:
        ValueError: The layout makes no sense for these tensors.
    """
    known = {tensor.name: tensor for tensor in tensors}
    total = 0
    for layer in adapter.layers:
        tensor = known.pop(layer.tensor, None)  # each once
        if tensor is None or tensor.dtype != "BF16" or len(tensor.shape) != 2:
            raise ValueError(f"an adapter to {layer.tensor[:80]!r}, which is no matrix of its own")
        if not 0 < layer.rank <= _MOST_RANK or not math.isfinite(layer.scale):
            raise ValueError(f"an adapter of rank {layer.rank} and scale {layer.scale}")
        total += 4 * layer.rank * (tensor.shape[0] + tensor.shape[1])
    return total


def merge_payload(
    adapter: checkpoint_pb2.Adapter,
    tensors: Sequence[checkpoint_pb2.TensorManifest],
    base: bytes | bytearray | memoryview,
    data: bytearray,
) -> bytearray:
    """Makes the wanted payload out of the base's and an adapter.

    Args:
        adapter: Layout that `adapter_bytes` accepts.
        tensors: Layout of both payloads.
        base: Payload of the base; stays as it is.
        data: Payload of the adapter, of `adapter_bytes` bytes.
    """
    import torch

    payload = bytearray(base)
    known = {tensor.name: tensor for tensor in tensors}
    at = 0

    def factor(rows: int, columns: int) -> Tensor:
        nonlocal at
        begin, at = at, at + 4 * rows * columns
        if begin == at:
            return torch.zeros(rows, columns)
        flat: Tensor = torch.frombuffer(data, dtype=torch.float32, count=rows * columns, offset=begin)
        return flat.reshape(rows, columns)

    for layer in adapter.layers:
        tensor = known[layer.tensor]
        outputs, inputs = tensor.shape
        down_RI, up_OR = factor(layer.rank, inputs), factor(outputs, layer.rank)
        if not tensor.length_bytes:
            continue
        # Through a tensor of its own: one may lie at an odd word of the payload.
        begin, end = tensor.offset_bytes, tensor.offset_bytes + tensor.length_bytes
        weight = torch.frombuffer(payload[begin:end], dtype=torch.bfloat16).reshape(outputs, inputs)
        merge_into(weight, weight.clone(), down_RI, up_OR, layer.scale)
        payload[begin:end] = weight.view(torch.uint8).numpy().tobytes()
    return payload
