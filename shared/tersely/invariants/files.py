"""Hashes of weights on disk, without torch."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

from tersely.weights.digest import ITEM_BYTES, TensorHash, weights_sha256

_LENGTH = struct.Struct("<Q")
_MAX_HEADER_BYTES = 100_000_000
_PIECE = 1 << 22


def file_sha256(path: Path) -> str:
    """SHA-256, hex, of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def policy_sha256(path: Path) -> str | None:
    """Hash of the weights in a safetensors file, as labels have it; None where it is none that a run publishes."""
    try:
        with path.open("rb") as file:
            (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
            if length > min(_MAX_HEADER_BYTES, path.stat().st_size):
                return None
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            found = []
            for name, tensor in header.items():
                begin, end = tensor["data_offsets"]
                if tensor["dtype"] not in ITEM_BYTES or not 0 <= begin <= end:
                    return None
                file.seek(_LENGTH.size + length + begin)
                digest, left = hashlib.sha256(), end - begin
                while left:
                    piece = file.read(min(left, _PIECE))
                    if not piece:
                        return None
                    digest.update(piece)
                    left -= len(piece)
                found.append(TensorHash(name, tensor["dtype"], tensor["shape"], digest.hexdigest()))
        return weights_sha256(found) if found else None
    except (OSError, ValueError, RecursionError, OverflowError, KeyError, TypeError, AttributeError, struct.error):
        return None
