"""One version of the weights, as it travels."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tersely.types import WeightsLabel
from tersely.v1 import checkpoint_pb2
from tersely.weights.adapter import AdapterLayer, PackedAdapter
from tersely.weights.digest import details_sha256, manifest_sha256, tensor_sha256
from tersely.weights.manifest import is_tensor_name
from tersely.weights.model_files import ModelFile
from tersely.weights.probe import Probe

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Payload and manifest of one version.

    Attributes:
        label: Version and hash.
        manifest: What is announced.
        payload: Raw bytes of all tensors in order of their names, little-endian and row-major, read-only.
        adapter: What makes them out of the manifest's `adapter_base`, if they are an adapter.
    """

    label: WeightsLabel
    manifest: checkpoint_pb2.WeightsManifest
    payload: memoryview
    adapter: PackedAdapter | None = None

    @classmethod
    def build(
        cls,
        version: int,
        tensors: Mapping[str, Tensor],
        *,
        run_id: str,
        model_files: Sequence[ModelFile],
        stop_token_ids: Sequence[int],
        chunk_bytes: int,
        incarnation: int,
        probe: Probe | None = None,
        adapter: Sequence[AdapterLayer] | None = None,
        adapter_base: WeightsLabel | None = None,
    ) -> Snapshot:
        """Copies tensors once into a payload and hashes it.

        Args:
            version: Policy version, >= 0.
            tensors: Name to CPU tensor, bfloat16 or float32, any shape; tied tensors once.
            run_id: Run it belongs to.
            model_files: Config and tokenizer files.
            stop_token_ids: Ids that end a completion.
            chunk_bytes: Bytes per chunk when it is sent.
            incarnation: Incarnation of the trainer.
            probe: How to see that an engine computes with these weights.
            adapter: What makes them out of `adapter_base`.
            adapter_base: Weights that the trainer keeps; none: an adapter is of no use to anybody.

        Raises:
            ValueError: There is no tensor, or one of another dtype or device, or with a name that no receiver takes.
        """
        import torch

        names = {torch.bfloat16: "BF16", torch.float32: "F32"}
        if not tensors:
            raise ValueError("no tensors to publish")
        for name, tensor in tensors.items():
            if not is_tensor_name(name):
                raise ValueError(f"{name[:80]!r} can't be the name of a tensor")
            if tensor.dtype not in names or tensor.device.type != "cpu":
                raise ValueError(
                    f"{name} is {tensor.dtype} on {tensor.device}; published are bfloat16 or float32 on the CPU"
                )
        manifest = checkpoint_pb2.WeightsManifest(
            run_id=run_id,
            payload_bytes=sum(tensor.nbytes for tensor in tensors.values()),
            chunk_bytes=chunk_bytes,
            stop_token_ids=stop_token_ids,
            trainer_incarnation=incarnation,
        )
        payload = bytearray(manifest.payload_bytes)
        flat = torch.frombuffer(payload, dtype=torch.uint8) if payload else torch.empty(0, dtype=torch.uint8)
        offset = 0
        for name in sorted(tensors):
            tensor = tensors[name].detach()
            if tensor.nbytes:  # an empty tensor may have strides that no view of bytes goes with
                flat[offset : offset + tensor.nbytes].copy_(tensor.contiguous().reshape(-1).view(torch.uint8))
            manifest.tensors.add(
                name=name,
                dtype=names[tensor.dtype],
                shape=tensor.shape,
                offset_bytes=offset,
                length_bytes=tensor.nbytes,
            )
            offset += tensor.nbytes
        view = memoryview(payload).toreadonly()
        _hash(manifest.tensors, view)
        for file in model_files:
            manifest.model_files.add(name=file.name, length_bytes=len(file.data), sha256=file.sha256)
        if probe is not None:
            manifest.probe.CopyFrom(probe.to_proto())
        packed = None
        if adapter is not None and adapter_base is not None:
            packed = PackedAdapter.pack(adapter)
            manifest.adapter_base.CopyFrom(adapter_base.to_proto())
        manifest.weights.policy_version = version
        manifest.weights.weights_sha256 = manifest_sha256(manifest)
        # Names, types, shapes and bytes of the tensors decide every byte of the payload.
        manifest.payload_sha256 = manifest.weights.weights_sha256
        manifest.details_sha256 = details_sha256(manifest)
        return cls(WeightsLabel.from_proto(manifest.weights), manifest, view, packed)


def _hash(tensors: Iterable[checkpoint_pb2.TensorManifest], payload: memoryview) -> None:
    """Fills in the hashes, on several threads: hashlib lets go of the GIL."""

    def hash_one(tensor: checkpoint_pb2.TensorManifest) -> None:
        tensor.sha256 = tensor_sha256(payload[tensor.offset_bytes : tensor.offset_bytes + tensor.length_bytes])

    # The largest first: it must not be the one that the others have to wait for.
    by_length = sorted(tensors, key=lambda tensor: -tensor.length_bytes)
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        for _ in pool.map(hash_one, by_length):
            continue
