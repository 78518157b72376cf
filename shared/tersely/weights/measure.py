"""What deltas between the versions of a run cost: `tersely bench weights`."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tersely.weights.blocks import Values, values
from tersely.weights.delta import decode_delta, encode_delta
from tersely.weights.digest import ITEM_BYTES
from tersely.weights.snapshot import Snapshot
from tersely.weights.versions import find_versions, origin_of, read_version

_MERGED = 8
_MEDIANS = ("delta_bytes", "ratio", "over_entropy", "encode_seconds", "decode_seconds")


def measure(
    checkpoints: Path, threads: int | None = None, progress: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """Encodes and decodes the delta between each two neighbouring versions, and one over the first up to nine.

    Args:
        checkpoints: A run directory, its folder of checkpoints, or a folder of recorded versions.
        threads: Threads of encoder and decoder; none: half of the cores.
        progress: Told of each pair.

    Returns:
        Per model and learning rate the medians over the pairs, and each pair's own figures. Bytes and seconds;
        `entropy_bytes` is that of the changed positions (independent, per tensor) and of their XORed values (order 0).

    Raises:
        CheckpointInvalid: There are fewer than two versions, or one can't be read or isn't what was published.
    """
    found = find_versions(checkpoints)
    pairs: list[dict[str, Any]] = []
    merged: dict[str, Any] | None = None
    first = previous = read_version(found[0])
    for number, path in enumerate(found[1:], 1):
        current = read_version(path)
        pairs.append(_pair(previous, current, threads))
        progress(f"{found[number - 1].name} -> {path.name}: {pairs[-1]['ratio']} times smaller")
        if number == min(_MERGED, len(found) - 1) and number > 1:
            merged = _pair(first, current, threads)
        previous = current
    count = min(_MERGED, len(pairs))
    over_sum = merged and round(merged["delta_bytes"] / sum(pair["delta_bytes"] for pair in pairs[:count]), 3)
    middle = {key: statistics.median(pair[key] for pair in pairs) for key in _MEDIANS}
    origin = origin_of(found[0])
    return {
        origin.title if origin else found[0].parent.name: {
            "model": origin and origin.model,
            "learning_rate": origin and origin.learning_rate,
            "data": origin and origin.data,
            "full_bytes": pairs[0]["full_bytes"],
            **middle,
            "merged_8_over_sum": over_sum if count == _MERGED else None,
            "merged_pairs": count,
            "merged_over_sum": over_sum,
            "merged": merged,
            "bit_exact": all(pair["bit_exact"] for pair in [*pairs, *([merged] if merged else [])]),
            "pairs": pairs,
        }
    }


def _pair(base: Snapshot, want: Snapshot, threads: int | None) -> dict[str, Any]:
    started = time.perf_counter()
    delta = encode_delta(want.manifest.tensors, base.payload, want.payload, threads)
    encoded = time.perf_counter()
    back = decode_delta(want.manifest, base.payload, delta, threads)
    decoded = time.perf_counter()
    changed = total = 0
    bits = 0.0
    for old, new in _tensors(base, want):
        positions = np.flatnonzero(old != new)
        changed, total = changed + positions.size, total + old.size
        if positions.size:
            bits += old.size * _entropy(np.array([positions.size, old.size - positions.size]))
            bits += positions.size * _entropy(np.unique(old[positions] ^ new[positions], return_counts=True)[1])
    return {
        "from_step": base.label.policy_version,
        "to_step": want.label.policy_version,
        "full_bytes": len(want.payload),
        "delta_bytes": len(delta),
        "ratio": round(len(want.payload) / len(delta), 1),
        "changed_share": round(changed / max(total, 1), 5),
        "entropy_bytes": round(bits / 8),
        "over_entropy": round(8 * len(delta) / bits, 3) if bits else 1.0,
        "encode_seconds": round(encoded - started, 3),
        "decode_seconds": round(decoded - encoded, 3),
        "bit_exact": back == want.payload,
    }


def _tensors(base: Snapshot, want: Snapshot) -> Iterator[tuple[Values, Values]]:
    for tensor in want.manifest.tensors:
        width = ITEM_BYTES[tensor.dtype]
        span = tensor.offset_bytes, tensor.length_bytes // width, width
        yield values(base.payload, *span), values(want.payload, *span)


def _entropy(counts: Values) -> float:
    """Bits per symbol."""
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log2(share)).sum())
