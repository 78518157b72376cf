"""Puts a payload together from chunks, and believes nothing that its hashes don't confirm."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tersely.errors import WeightsMismatch
from tersely.types import WeightsLabel
from tersely.v1 import checkpoint_pb2
from tersely.weights.adapter import adapter_bytes, merge_payload
from tersely.weights.delta import check_tensors, decode_delta, same_layout
from tersely.weights.digest import ITEM_BYTES, tensor_sha256
from tersely.weights.manifest import check_manifest

if TYPE_CHECKING:
    from torch import Tensor

_WAY_OUT = "It was fetched again from the beginning; check the memory and the network of both machines."


@dataclass(frozen=True, slots=True)
class HeldWeights:
    """A whole, checked version, as it was received.

    Attributes:
        label: Version and hash.
        manifest: Layout and hashes.
        payload: Raw bytes of all tensors.
    """

    label: WeightsLabel
    manifest: checkpoint_pb2.WeightsManifest
    payload: bytearray

    def tensors(self) -> dict[str, Tensor]:
        """Name to CPU tensor; they share the payload's memory."""
        import torch

        dtypes = {"BF16": torch.bfloat16, "F32": torch.float32}
        result: dict[str, Tensor] = {}
        for tensor in self.manifest.tensors:
            shape, dtype, begin = tuple(tensor.shape), dtypes[tensor.dtype], tensor.offset_bytes
            if not tensor.length_bytes:
                result[tensor.name] = torch.empty(shape, dtype=dtype)
                continue
            source, at = self.payload, begin
            if begin % ITEM_BYTES[tensor.dtype]:
                # A float32 tensor after an odd number of bfloat16 values would lie across word borders.
                source, at = self.payload[begin : begin + tensor.length_bytes], 0
            count = math.prod(shape)
            result[tensor.name] = torch.frombuffer(source, dtype=dtype, count=count, offset=at).reshape(shape)
        return result


class PayloadReceiver:
    """One version on its way in, whole, as a delta or as an adapter; outlives the streams that bring it.

    Args:
        want: Version and hash that the result must have.
        base: What a delta or an adapter may be against; it stays as it is.
        accepts_adapter: Whether an adapter may come; PyTorch merges it.
    """

    def __init__(self, want: WeightsLabel, base: HeldWeights | None = None, *, accepts_adapter: bool = False) -> None:
        self._want = want
        self._base = base
        self._accepts_adapter = accepts_adapter and base is not None
        self._adapter: checkpoint_pb2.Adapter | None = None
        self._manifest: checkpoint_pb2.WeightsManifest | None = None
        self._sent_sha256 = ""
        self._buffer = bytearray()
        self._payload: bytearray | None = None
        self._checked_tensors = 0
        self.received_bytes = 0
        self.is_delta = False
        self.is_adapter = False
        self.wrong_merge = False
        """Whether an adapter came as it was sent, and yet made other weights here than the label's."""

    @property
    def payload_sha256(self) -> str:
        """Hash of what is sent, which `received_bytes` belongs to; empty before the first message."""
        return self._sent_sha256

    @property
    def base_weights_sha256(self) -> str:
        """Hash of the weights that a delta may be against; empty: none."""
        return self._base.label.weights_sha256 if self._base is not None else ""

    @property
    def accepts_adapter(self) -> bool:
        """Whether an adapter to the base may come."""
        return self._accepts_adapter

    @property
    def complete(self) -> bool:
        """Whether everything is here and checked."""
        return self._payload is not None

    def feed(self, message: checkpoint_pb2.FetchWeightsResponse) -> None:
        """Takes one message of a stream; each tensor is checked as soon as it is whole.

        Raises:
            WeightsMismatch: The manifest is not that of the wanted label, what is sent is damaged or not against the
                base, or a tensor has another hash.
        """
        if message.HasField("manifest"):
            self._begin(message)
        if self._manifest is None or message.payload_sha256 != self._sent_sha256:
            raise WeightsMismatch(f"A chunk of {self._want} belongs to another payload.", _WAY_OUT)
        end = message.offset_bytes + len(message.data)
        if message.offset_bytes != self.received_bytes or end > len(self._buffer):
            raise WeightsMismatch(
                f"A chunk of {self._want} begins at byte {message.offset_bytes}, expected {self.received_bytes}.",
                _WAY_OUT,
            )
        self._buffer[message.offset_bytes : end] = message.data
        self.received_bytes = end
        if self.is_delta or self.is_adapter:
            self._apply()
        else:
            self._check_whole_tensors()

    def held(self) -> HeldWeights:
        """What was received.

        Raises:
            RuntimeError: It is not complete.
        """
        if self._manifest is None or self._payload is None:
            raise RuntimeError("the payload is not complete")
        return HeldWeights(self._want, self._manifest, self._payload)

    def tensors(self) -> dict[str, Tensor]:
        """Name to CPU tensor; they share one buffer.

        Raises:
            RuntimeError: The payload is not complete.
        """
        return self.held().tensors()

    def _begin(self, head: checkpoint_pb2.FetchWeightsResponse) -> None:
        manifest = head.manifest
        if self._manifest is not None:
            if head.payload_sha256 != self._sent_sha256:
                raise WeightsMismatch(f"The payload of {self._want} changed during a fetch.", _WAY_OUT)
            return
        check_manifest(manifest, self._want)
        if head.base_weights_sha256:
            self._check_base(head)
        elif head.payload_sha256 != manifest.payload_sha256:
            raise WeightsMismatch(f"What is sent of {self._want} is not its payload.", _WAY_OUT)
        if head.base_weights_sha256 and head.HasField("adapter"):
            self._adapter = head.adapter
        self.is_adapter = self._adapter is not None
        self.is_delta = bool(head.base_weights_sha256) and not self.is_adapter
        self._buffer = bytearray(head.payload_bytes if head.base_weights_sha256 else manifest.payload_bytes)
        self._manifest, self._sent_sha256 = manifest, head.payload_sha256

    def _check_base(self, head: checkpoint_pb2.FetchWeightsResponse) -> None:
        what = f"The {'adapter' if head.HasField('adapter') else 'delta'} to {self._want}"
        if self._base is None or head.base_weights_sha256 != self._base.label.weights_sha256:
            raise WeightsMismatch(f"{what} is against weights that are not here.", _WAY_OUT)
        if not same_layout(self._base.manifest, head.manifest):
            raise WeightsMismatch(f"{what} is against tensors of another layout.", _WAY_OUT)
        if not 0 < head.payload_bytes <= head.manifest.payload_bytes:
            raise WeightsMismatch(f"{what} is longer than a full copy.", _WAY_OUT)
        if not head.HasField("adapter"):
            return
        if not self._accepts_adapter:
            raise WeightsMismatch(f"{what} was not asked for.", _WAY_OUT)
        try:
            length = adapter_bytes(head.adapter, head.manifest.tensors)
        except ValueError as error:
            raise WeightsMismatch(f"{what} is damaged: {error}.", _WAY_OUT) from None
        if length != head.payload_bytes:
            raise WeightsMismatch(f"{what} has {head.payload_bytes} bytes, its layers {length}.", _WAY_OUT)

    def _apply(self) -> None:
        """Makes the payload of base and delta or adapter, once all of that is here."""
        assert self._manifest is not None
        assert self._base is not None
        if self.received_bytes < len(self._buffer):
            return
        if tensor_sha256(self._buffer) != self._sent_sha256:
            raise WeightsMismatch(f"What was sent of {self._want} has the wrong hash.", _WAY_OUT)
        if self._adapter is None:
            self._payload = decode_delta(self._manifest, self._base.payload, self._buffer)
        else:
            merged = merge_payload(self._adapter, self._manifest.tensors, self._base.payload, self._buffer)
            try:
                check_tensors(self._manifest, merged)
            except WeightsMismatch:
                self.wrong_merge = True
                raise
            self._payload = merged
        # What was sent and the base are no longer needed here.
        self._buffer, self._base = bytearray(), None

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
        self._payload = self._buffer
