"""Hashes that name weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from tersely.v1 import checkpoint_pb2

ITEM_BYTES = {"BF16": 2, "F32": 4}
"""Bytes per element of the dtypes that weights are published in."""


class TensorHash(NamedTuple):
    """What the hash of the weights knows of one tensor."""

    name: str
    dtype: str
    shape: Sequence[int]
    sha256: str


def tensor_sha256(data: bytes | bytearray | memoryview) -> str:
    """SHA-256, hex, of a tensor's raw little-endian row-major bytes."""
    return hashlib.sha256(data).hexdigest()


def weights_sha256(tensors: Iterable[TensorHash]) -> str:
    """SHA-256, hex, over the lines ``name:dtype:shape:sha256`` in sorted order.

    A shape is written like ``576x192``, that of a scalar as ``-``.
    Equal weights have equal hashes, whatever process, version or file they come from.
    """
    lines = sorted(f"{t.name}:{t.dtype}:{'x'.join(map(str, t.shape)) or '-'}:{t.sha256}\n" for t in tensors)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def manifest_sha256(manifest: checkpoint_pb2.WeightsManifest) -> str:
    """Hash of the weights that a manifest describes, from its tensors (not from its label)."""
    return weights_sha256(TensorHash(t.name, t.dtype, t.shape, t.sha256) for t in manifest.tensors)


def details_sha256(manifest: checkpoint_pb2.WeightsManifest) -> str:
    """SHA-256, hex, of what a manifest says beside the weights: the probe, the stop ids, the model files and so on."""
    details = [
        manifest.run_id,
        manifest.payload_bytes,
        manifest.payload_sha256,
        manifest.chunk_bytes,
        [[file.name, file.length_bytes, file.sha256] for file in manifest.model_files],
        list(manifest.stop_token_ids),
        manifest.trainer_incarnation,
        [list(manifest.probe.token_ids), list(manifest.probe.logprobs)] if manifest.HasField("probe") else None,
        [manifest.adapter_base.policy_version, manifest.adapter_base.weights_sha256]
        if manifest.HasField("adapter_base")
        else None,
    ]
    return hashlib.sha256(json.dumps(details).encode()).hexdigest()
