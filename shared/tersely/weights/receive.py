"""Puts a payload together from chunks, and believes nothing that its hashes don't confirm."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tersely.errors import WeightsMismatch
from tersely.types import WeightsLabel
from tersely.v1 import checkpoint_pb2
from tersely.weights.digest import ITEM_BYTES, manifest_sha256, tensor_sha256

if TYPE_CHECKING:
    from torch import Tensor

_WAY_OUT = "It was fetched twice; check the memory and the network of both machines."


class PayloadReceiver:
    """One payload on its way in; outlives the streams that bring it.

    Args:
        want: Version and hash that the payload must have.
    """

    def __init__(self, want: WeightsLabel) -> None:
        self._want = want
        self._manifest: checkpoint_pb2.WeightsManifest | None = None
        self._buffer = bytearray()
        self._checked_tensors = 0
        self.received_bytes = 0

    @property
    def payload_sha256(self) -> str:
        """Payload hash that `received_bytes` belongs to; empty before the first message."""
        return self._manifest.payload_sha256 if self._manifest is not None else ""

    @property
    def complete(self) -> bool:
        """Whether everything is here and checked."""
        return self._manifest is not None and self._checked_tensors == len(self._manifest.tensors)

    def feed(self, message: checkpoint_pb2.FetchWeightsResponse) -> None:
        """Takes one message of a stream; each tensor is checked as soon as it is whole.

        Raises:
            WeightsMismatch: The manifest is not that of the wanted label, or a tensor has another hash.
        """
        if message.HasField("manifest"):
            self._begin(message.manifest)
        if self._manifest is None or message.payload_sha256 != self._manifest.payload_sha256:
            raise WeightsMismatch(f"A chunk of {self._want} belongs to another payload.", _WAY_OUT)
        end = message.offset_bytes + len(message.data)
        if message.offset_bytes != self.received_bytes or end > len(self._buffer):
            raise WeightsMismatch(
                f"A chunk of {self._want} begins at byte {message.offset_bytes}, expected {self.received_bytes}.",
                _WAY_OUT,
            )
        self._buffer[message.offset_bytes : end] = message.data
        self.received_bytes = end
        self._check_whole_tensors()

    def tensors(self) -> dict[str, Tensor]:
        """Name to CPU tensor; they share the receiver's buffer, which no one else writes.

        Raises:
            RuntimeError: The payload is not complete.
        """
        import torch

        if self._manifest is None or not self.complete:
            raise RuntimeError("the payload is not complete")
        dtypes = {"BF16": torch.bfloat16, "F32": torch.float32}
        result: dict[str, Tensor] = {}
        for tensor in self._manifest.tensors:
            shape, dtype, begin = tuple(tensor.shape), dtypes[tensor.dtype], tensor.offset_bytes
            if not tensor.length_bytes:
                result[tensor.name] = torch.empty(shape, dtype=dtype)
                continue
            source, at = self._buffer, begin
            if begin % ITEM_BYTES[tensor.dtype]:
                # A float32 tensor after an odd number of bfloat16 values would lie across word borders.
                source, at = self._buffer[begin : begin + tensor.length_bytes], 0
            count = math.prod(shape)
            result[tensor.name] = torch.frombuffer(source, dtype=dtype, count=count, offset=at).reshape(shape)
        return result

    def _begin(self, manifest: checkpoint_pb2.WeightsManifest) -> None:
        if self._manifest is not None:
            if manifest.payload_sha256 != self._manifest.payload_sha256:
                raise WeightsMismatch(f"The payload of {self._want} changed during a fetch.", _WAY_OUT)
            return
        self._check_manifest(manifest)
        self._manifest = manifest
        self._buffer = bytearray(manifest.payload_bytes)

    def _check_manifest(self, manifest: checkpoint_pb2.WeightsManifest) -> None:
        if WeightsLabel.from_proto(manifest.weights) != self._want:
            raise WeightsMismatch(f"Asked for {self._want}, the trainer sent another version.", _WAY_OUT)
        if manifest_sha256(manifest) != self._want.weights_sha256:
            raise WeightsMismatch(f"The tensor hashes of {self._want} do not add up to its own hash.", _WAY_OUT)
        end = 0
        for tensor in manifest.tensors:
            length = math.prod(tensor.shape) * ITEM_BYTES.get(tensor.dtype, -1)
            if tensor.offset_bytes != end or tensor.length_bytes != length:
                raise WeightsMismatch(f"{self._want}: the layout of tensor {tensor.name} makes no sense.", _WAY_OUT)
            end += length
        if end != manifest.payload_bytes:
            raise WeightsMismatch(
                f"{self._want}: tensors of {end} bytes, payload of {manifest.payload_bytes}.", _WAY_OUT
            )

    def _check_whole_tensors(self) -> None:
        assert self._manifest is not None
        tensors = self._manifest.tensors
        with memoryview(self._buffer) as view:
            while self._checked_tensors < len(tensors):
                tensor = tensors[self._checked_tensors]
                end = tensor.offset_bytes + tensor.length_bytes
                if end > self.received_bytes:
                    return
                with view[tensor.offset_bytes : end] as part:
                    digest = tensor_sha256(part)
                if digest != tensor.sha256:
                    raise WeightsMismatch(f"Tensor {tensor.name} of {self._want} has the wrong hash.", _WAY_OUT)
                self._checked_tensors += 1
