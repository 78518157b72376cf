"""Lossless deltas between two payloads of the same layout."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from typing import NamedTuple

from tersely.errors import WeightsMismatch
from tersely.v1 import checkpoint_pb2
from tersely.weights.blocks import BLOCK_ITEMS, block_length, decode_block, encode_block, values
from tersely.weights.digest import ITEM_BYTES, tensor_sha256

_MAGIC = b"TWD1"
_NICENESS = 10
_WAY_OUT = "A full copy is fetched instead; if this happens again, check the memory of both machines."


class _Span(NamedTuple):
    """A run of values of one width, in bytes from the begin of the payload."""

    begin: int
    items: int
    width: int


def same_layout(left: checkpoint_pb2.WeightsManifest, right: checkpoint_pb2.WeightsManifest) -> bool:
    """Whether two payloads hold the same tensors at the same places, so that one can be a delta of the other."""
    return len(left.tensors) == len(right.tensors) and all(
        (a.name, a.dtype, a.shape, a.offset_bytes) == (b.name, b.dtype, b.shape, b.offset_bytes)
        for a, b in zip(left.tensors, right.tensors, strict=True)
    )


def encode_delta(
    tensors: Sequence[checkpoint_pb2.TensorManifest], base: memoryview, want: memoryview, threads: int | None = None
) -> bytes:
    """Writes what makes one payload out of another.

    Args:
        tensors: Layout of both, in payload order without holes.
        base: Payload that the reader has.
        want: Payload that the reader gets.
        threads: Threads to use, which let others go first where the system can do that; none: half of the cores.
    """

    def encode(span: _Span) -> bytes:
        return encode_block(*(values(payload, *span) for payload in (base, want)))

    with _pool(threads, polite=True) as pool:
        return _MAGIC + b"".join(pool.map(encode, _spans(tensors)))


def decode_delta(
    manifest: checkpoint_pb2.WeightsManifest,
    base: bytes | bytearray | memoryview,
    delta: bytes | bytearray | memoryview,
    threads: int | None = None,
) -> bytearray:
    """Makes the wanted payload, and checks each tensor in it.

    Args:
        manifest: Of the wanted payload.
        base: Payload that the delta was made against; stays as it is.
        delta: What `encode_delta` wrote.
        threads: Threads to use; none: half of the cores.

    Raises:
        WeightsMismatch: The delta is damaged, or a tensor has another hash: one of delta and base is not what it was.
    """
    payload = bytearray(base)
    view = memoryview(delta)
    spans = list(_spans(manifest.tensors))
    try:
        blocks = _split(view, spans)
        with _pool(threads, polite=False) as pool:
            for _ in pool.map(
                lambda pair: decode_block(pair[0], values(payload, *pair[1])), zip(blocks, spans, strict=True)
            ):
                continue
    except ValueError as error:
        raise WeightsMismatch(f"The delta is damaged: {error}.", _WAY_OUT) from None
    check_tensors(manifest, payload, threads)
    return payload


def check_tensors(manifest: checkpoint_pb2.WeightsManifest, payload: bytearray, threads: int | None = None) -> None:
    """Checks each tensor of a payload that was made here.

    Args:
        manifest: Has their hashes.
        payload: Of the manifest's length.
        threads: Threads to use; none: half of the cores.

    Raises:
        WeightsMismatch: One has another hash.
    """

    def check(tensor: checkpoint_pb2.TensorManifest) -> None:
        with memoryview(payload)[tensor.offset_bytes : tensor.offset_bytes + tensor.length_bytes] as part:
            if tensor_sha256(part) != tensor.sha256:
                raise WeightsMismatch(f"Tensor {tensor.name} has the wrong hash after what was sent.", _WAY_OUT)

    with _pool(threads, polite=False) as pool:
        for _ in pool.map(check, manifest.tensors):
            continue


def _spans(tensors: Sequence[checkpoint_pb2.TensorManifest]) -> Iterator[_Span]:
    """Cuts a payload into blocks; they don't stop at the borders of tensors, many of which are tiny."""
    begin = 0
    for width, run in groupby(tensors, lambda tensor: ITEM_BYTES[tensor.dtype]):
        count = sum(tensor.length_bytes for tensor in run) // width
        for first in range(0, count, BLOCK_ITEMS):
            yield _Span(begin + first * width, min(BLOCK_ITEMS, count - first), width)
        begin += count * width


def _split(delta: memoryview, spans: Sequence[_Span]) -> list[memoryview]:
    if bytes(delta[: len(_MAGIC)]) != _MAGIC:
        raise ValueError("it does not begin like one")
    blocks, at = [], len(_MAGIC)
    for span in spans:
        length = block_length(delta, at, span.items, span.width)
        blocks.append(delta[at : at + length])
        at += length
    if at != len(delta):
        raise ValueError(f"it has {len(delta)} bytes, its blocks {at}")
    return blocks


def _pool(threads: int | None, *, polite: bool) -> ThreadPoolExecutor:
    count = threads or max(1, min(4, (os.cpu_count() or 1) // 2))
    return ThreadPoolExecutor(count, "weights-delta", initializer=_step_back if polite else None)


def _step_back() -> None:
    """Lowers this thread's priority, so that the learner doesn't wait for it; only Linux has that per thread."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
