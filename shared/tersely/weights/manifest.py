"""What a receiver asks of a manifest before it makes room for what that promises."""

from __future__ import annotations

import math
import os
import re

from tersely.errors import WeightsMismatch
from tersely.types import WeightsLabel
from tersely.v1 import checkpoint_pb2
from tersely.weights.digest import ITEM_BYTES, details_sha256, manifest_sha256

_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,253}[A-Za-z0-9_])?", re.ASCII)
_MOST_DIMENSIONS = 8
_WAY_OUT = "It was fetched again from the beginning; check the memory and the network of both machines."


def is_tensor_name(name: str) -> bool:
    """Whether a name can be a tensor's: what module names are made of, so no path and no line of its own in a hash."""
    return _NAME.fullmatch(name) is not None and ".." not in name


def check_manifest(manifest: checkpoint_pb2.WeightsManifest, want: WeightsLabel) -> None:
    """Refuses a manifest that is not that of the wanted weights, or whose payload can't be.

    Raises:
        WeightsMismatch: It says why.
    """
    if WeightsLabel.from_proto(manifest.weights) != want:
        raise WeightsMismatch(f"Asked for {want}, the trainer sent another version.", _WAY_OUT)
    if manifest_sha256(manifest) != want.weights_sha256:
        raise WeightsMismatch(f"The tensor hashes of {want} do not add up to its own hash.", _WAY_OUT)
    if details_sha256(manifest) != manifest.details_sha256:
        raise WeightsMismatch(f"What the manifest of {want} says beside the weights is damaged.", _WAY_OUT)
    end, names = 0, set()
    for tensor in manifest.tensors:
        if not is_tensor_name(tensor.name) or tensor.name in names:
            raise WeightsMismatch(f"{want}: a tensor named {tensor.name[:80]!r} can't be.", _WAY_OUT)
        names.add(tensor.name)
        if tensor.dtype not in ITEM_BYTES or len(tensor.shape) > _MOST_DIMENSIONS or max(tensor.shape, default=0) >> 48:
            raise WeightsMismatch(f"{want}: tensor {tensor.name} has a type or shape that can't be.", _WAY_OUT)
        length = math.prod(tensor.shape) * ITEM_BYTES[tensor.dtype]
        if tensor.offset_bytes != end or tensor.length_bytes != length:
            raise WeightsMismatch(f"{want}: the layout of tensor {tensor.name} makes no sense.", _WAY_OUT)
        end += length
    if end != manifest.payload_bytes:
        raise WeightsMismatch(f"{want}: tensors of {end} bytes, payload of {manifest.payload_bytes}.", _WAY_OUT)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if end > memory:
        raise WeightsMismatch(
            f"{want} is said to have {end} bytes; this machine has {memory} bytes of memory.",
            "Check that the address is that of a trainer you trust; a model of this size needs a larger machine.",
        )
