"""Sorted positions as gaps in a few streams of bytes that an entropy coder packs well.

Changed positions are nearly independent of each other, so the gaps between them are nearly geometric. A geometric
number splits into parts that are independent of each other: its low bytes, and the quotient that is left, written in
base 255 with 255 for "and 255 more". Coding each part by itself loses nothing. (Golomb, Run-length encodings, 1966.)
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

_LONGEST_BARE_GAP = 400
"""Mean gap beyond which low bytes are split off: the 255s would cost more than they say."""


def low_bytes_for(count: int, size: int) -> int:
    """How many low bytes of the gaps get a stream of their own, for `count` positions among `size`."""
    low_bytes, mean = 0, size / max(count, 1)
    while mean > _LONGEST_BARE_GAP:
        low_bytes, mean = low_bytes + 1, mean / 256
    return low_bytes


def encode_positions(positions: NDArray[np.int64], low_bytes: int) -> list[Bytes]:
    """Splits positions into streams.

    Args:
        positions: [K], ascending without repetition, >= 0.
        low_bytes: As from `low_bytes_for`.

    Returns:
        The quotients, then each low byte, the lowest first.
    """
    gaps = np.diff(positions, prepend=-1) - 1
    streams = [((gaps >> 8 * i) & 0xFF).astype(np.uint8) for i in range(low_bytes)]
    quotients, rests = np.divmod(gaps >> 8 * low_bytes, 255)
    places = np.cumsum(quotients)
    out = np.full(positions.size + (int(places[-1]) if places.size else 0), 255, np.uint8)
    out[places + np.arange(positions.size)] = rests
    return [out, *streams]


def decode_positions(quotients: Bytes, low: list[Bytes], size: int) -> NDArray[np.int64]:
    """Inverse of `encode_positions`.

    Args:
        quotients: First stream.
        low: The others, [K] each.
        size: Positions are less than this.

    Returns:
        [K] positions.

    Raises:
        ValueError: The streams are not those of positions below `size`.
    """
    ends = np.flatnonzero(quotients != 255)
    if quotients.size and (not ends.size or ends[-1] != quotients.size - 1):
        raise ValueError("the positions break off")
    sums: NDArray[Any] = np.cumsum(quotients, dtype=np.int64)[ends]
    if low:
        if any(stream.size != ends.size for stream in low):
            raise ValueError("the streams of the positions differ in length")
        gaps = np.diff(sums, prepend=0) << 8 * len(low)
        for i, stream in enumerate(low):
            gaps |= stream.astype(np.int64) << 8 * i
        sums = np.cumsum(gaps)
    positions = sums + np.arange(ends.size)
    if positions.size and not 0 <= positions[-1] < size:
        raise ValueError("positions beyond the end")
    return positions
