"""One block of a delta: up to four million values of two payloads, coded the shortest of four ways.

A value (the bits of a bfloat16 or float32) is taken as an unsigned integer, and its change as the difference modulo its
width, small changes of either sign first (zigzag). That is as lossless as XOR, whatever the bits mean, and shorter: a
step to the neighbouring float is 1 or 2, where XOR depends on how far the carry runs. Changes are cut into byte planes,
each packed by itself.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from tersely.weights.gaps import Bytes, decode_positions, encode_positions, low_bytes_for

BLOCK_ITEMS = 1 << 22
"""Most values in a block: scratch memory stays below 100 MB a thread, and a block's own overhead does not matter."""

Values = NDArray[Any]
_UNSIGNED: dict[int, np.dtype[Any]] = {2: np.dtype("<u2"), 4: np.dtype("<u4")}
_HEADER = struct.Struct("<BBI")  # coding, low bytes of the gaps, changed values
_LENGTH = struct.Struct("<I")
_SPARSE_UP_TO, _DENSE_FROM = 0.6, 0.25


class Coding(IntEnum):
    """How a block is written."""

    SAME = 0
    GAPS = 1
    DENSE = 2
    FULL = 3


def values(payload: memoryview | bytearray, begin: int, count: int, width: int) -> Values:
    """`count` values of `width` bytes from a byte offset on; shares the payload's memory."""
    return np.frombuffer(payload, dtype=_UNSIGNED[width], count=count, offset=begin)


def encode_block(base: Values, want: Values) -> bytes:
    """Writes what makes `want` out of `base`, in the fewest bytes.

    Args:
        base: [N] unsigned integers.
        want: [N] of the same width.
    """
    positions = np.flatnonzero(base != want)
    if not positions.size:
        return _HEADER.pack(Coding.SAME, 0, 0)
    share = positions.size / base.size
    candidates = []
    if share <= _SPARSE_UP_TO:
        low_bytes = low_bytes_for(positions.size, base.size)
        streams = encode_positions(positions, low_bytes) + _planes(want[positions] - base[positions])
        candidates.append(_HEADER.pack(Coding.GAPS, low_bytes, positions.size) + _pack(streams))
    if share >= _DENSE_FROM:
        candidates.append(_HEADER.pack(Coding.DENSE, 0, positions.size) + _pack(_planes(want - base)))
    shortest = min(candidates, key=len)
    if len(shortest) < want.nbytes:
        return shortest
    return _HEADER.pack(Coding.FULL, 0, positions.size) + want.tobytes()


def block_length(delta: memoryview, begin: int, count: int, width: int) -> int:
    """Bytes of the block at `begin`, from its headers alone.

    Raises:
        ValueError: They make no sense.
    """
    coding, low_bytes, _ = _header(delta, begin, count)
    if coding is Coding.SAME:
        return _HEADER.size
    if coding is Coding.FULL:
        return _HEADER.size + count * width
    at = begin + _HEADER.size
    for _ in range(width + (1 + low_bytes if coding is Coding.GAPS else 0)):
        if at + _LENGTH.size > len(delta):
            raise ValueError("the delta breaks off")
        at += _LENGTH.size + int(_LENGTH.unpack_from(delta, at)[0])
    return at - begin


def decode_block(block: memoryview, target: Values) -> None:
    """Turns the base's values into the wanted ones, in place.

    Args:
        block: What `encode_block` wrote.
        target: [N] values of the base; writable.

    Raises:
        ValueError: The block is damaged; `target` may hold anything then.
    """
    coding, low_bytes, changed = _header(block, 0, target.size)
    width = target.dtype.itemsize
    if coding is Coding.FULL:
        if len(block) != _HEADER.size + target.nbytes:
            raise ValueError("a block of the wrong length")
        target[:] = np.frombuffer(block, dtype=target.dtype, offset=_HEADER.size)
    elif coding is Coding.DENSE:
        target += _joined(_unpack(block, [target.size] * width), target.dtype)
    elif coding is Coding.GAPS:
        longest = changed + (target.size >> 8 * low_bytes) // 255
        quotients, *streams = _unpack(block, [longest] + [changed] * (low_bytes + width))
        positions = decode_positions(quotients, streams[:low_bytes], target.size)
        if positions.size != changed:
            raise ValueError("the number of positions is not that of the changes")
        target[positions] += _joined(streams[low_bytes:], target.dtype)


def _header(data: memoryview, begin: int, count: int) -> tuple[Coding, int, int]:
    if begin + _HEADER.size > len(data):
        raise ValueError("the delta breaks off")
    coding, low_bytes, changed = _HEADER.unpack_from(data, begin)
    if low_bytes > 4 or changed > count:
        raise ValueError("the header of a block makes no sense")
    return Coding(coding), low_bytes, changed


def _planes(differences: Values) -> list[Bytes]:
    """Zigzag, then one array of bytes per byte of the value, the lowest first."""
    bits = 8 * differences.dtype.itemsize
    signed = differences.view(differences.dtype.str.replace("u", "i"))
    folded = ((signed << 1) ^ (signed >> (bits - 1))).view(differences.dtype)
    return [(folded >> shift).astype(np.uint8) for shift in range(0, bits, 8)]


def _joined(planes: list[Bytes], dtype: np.dtype[Any]) -> Values:
    if any(plane.size != planes[0].size for plane in planes):
        raise ValueError("byte planes of different lengths")
    folded = np.zeros(planes[0].size, dtype)
    for i, plane in enumerate(planes):
        folded |= plane.astype(dtype) << dtype.type(8 * i)
    one = dtype.type(1)
    joined: Values = (folded >> one) ^ (np.zeros_like(folded) - (folded & one))
    return joined


def _pack(streams: list[Bytes]) -> bytes:
    # Huffman codes over nearly no matches: what is left in these streams is close to noise.
    parameters = zstandard.ZstdCompressionParameters(
        strategy=zstandard.STRATEGY_FAST, min_match=7, window_log=18, hash_log=6, chain_log=6, write_checksum=False
    )
    compressor = zstandard.ZstdCompressor(compression_params=parameters)
    packed = [compressor.compress(stream.data) for stream in streams]
    return b"".join(_LENGTH.pack(len(part)) + part for part in packed)


def _unpack(block: memoryview, longest: list[int]) -> list[Bytes]:
    decompressor = zstandard.ZstdDecompressor()
    streams, at = [], _HEADER.size
    for most in longest:
        (length,) = _LENGTH.unpack_from(block, at)
        part = block[at + _LENGTH.size : at + _LENGTH.size + length]
        at += _LENGTH.size + length
        try:
            # Asked first, because decompress() trusts the frame and makes room for what it claims.
            if not 0 <= zstandard.frame_content_size(part) <= most:
                raise ValueError("a stream is longer than it can be")
            streams.append(np.frombuffer(decompressor.decompress(part), np.uint8))
        except zstandard.ZstdError as error:
            raise ValueError(f"a stream can not be unpacked: {error}") from None
    return streams
