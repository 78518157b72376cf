"""Deltas made on request, once each, off every thread that has something else to do."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import threading
import time
from collections import Counter, OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import structlog

from tersely.weights.delta import encode_delta, same_layout
from tersely.weights.snapshot import Snapshot
from tersely.weights.store import SnapshotStore

_MOST_ENTRIES = 64
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Delta:
    """What makes one version out of another.

    Attributes:
        base_weights_sha256: Hash of the weights it is against.
        data: As `tersely.weights.delta` writes it.
        sha256: SHA-256, hex, of `data`.
        seconds: Time it took to make.
    """

    base_weights_sha256: str
    data: bytes
    sha256: str
    seconds: float


class DeltaShelf:
    """Makes deltas from what a store holds and keeps those asked for last. Thread-safe.

    A delta over several versions is made from the first and the last of them, not from the deltas between. One that
    waits for its turn holds no payload: when it comes, what the store has dropped is sent whole.

    Args:
        store: Holds the snapshots.
        most_bytes: Deltas kept; the one asked for last always is.
        threads: Threads that encode; none: half of the cores.
    """

    def __init__(self, store: SnapshotStore, most_bytes: int = 256 << 20, threads: int | None = None) -> None:
        self._store = store
        self._most_bytes = most_bytes
        self._threads = threads
        self._lock = threading.Lock()
        # In order of use, the last one last.
        self._made: OrderedDict[tuple[str, str], Future[Delta | None]] = OrderedDict()
        self._waiting: Counter[tuple[str, str]] = Counter()
        # One delta at a time: each uses several threads, and a trainer trains beside it.
        self._worker = ThreadPoolExecutor(1, "weights-shelf")
        self._closed = False
        self.encoded = 0

    async def get(self, base_weights_sha256: str, want: Snapshot) -> Delta | None:
        """The delta from weights with this hash; those who ask at once share one encoding.

        Returns:
            None where a full copy is the answer: base or version aren't held any more or differ in layout, or the delta
            is no shorter.
        """
        key = (base_weights_sha256, want.label.weights_sha256)
        future = self._future(key, want)
        if future is None:
            return None
        try:
            # Shielded: one reader that leaves must not take the encoding from the others.
            return await asyncio.shield(asyncio.wrap_future(future))
        except Exception:  # noqa: BLE001 - logged; a full copy serves as well
            _log.exception("delta_failed", base=base_weights_sha256, want=str(want.label))
            return None
        finally:
            self._leave(key, future)

    def close(self) -> None:
        """Makes no more deltas."""
        with self._lock:
            self._closed = True
        self._worker.shutdown(wait=False, cancel_futures=True)

    def _future(self, key: tuple[str, str], want: Snapshot) -> Future[Delta | None] | None:
        """The delta made, or to be made; its caller waits, until it calls `_leave`."""
        with self._lock:
            future = self._made.get(key)
            if future is None or (future.done() and (future.cancelled() or future.exception())):
                base = self._store.find(key[0])
                if base is None or self._closed or not same_layout(base.manifest, want.manifest):
                    return None
                future = self._made[key] = self._worker.submit(self._encode, *key)
            self._made.move_to_end(key)
            self._waiting[key] += 1
            return future

    def _leave(self, key: tuple[str, str], future: Future[Delta | None]) -> None:
        """What nobody waits for any more is not made, unless it has begun."""
        with self._lock:
            self._waiting[key] -= 1
            if self._waiting[key] > 0:
                return
            del self._waiting[key]
            if future.cancel() and self._made.get(key) is future:
                del self._made[key]

    def _encode(self, base_weights_sha256: str, weights_sha256: str) -> Delta | None:
        base, want = self._store.find(base_weights_sha256), self._store.find(weights_sha256)
        if base is None or want is None:
            _log.info("delta_not_made", base=base_weights_sha256, want=weights_sha256, reason="not held any more")
            self._forget((base_weights_sha256, weights_sha256))
            return None
        started = time.monotonic()
        data = encode_delta(want.manifest.tensors, base.payload, want.payload, self._threads)
        seconds = time.monotonic() - started
        shorter = len(data) < len(want.payload)
        _log.info(
            "delta_made",
            base=str(base.label),
            want=str(want.label),
            bytes=len(data),
            full_bytes=len(want.payload),
            seconds=round(seconds, 3),
        )
        self._make_room(len(data))
        self.encoded += 1
        if not shorter:
            return None
        return Delta(base.label.weights_sha256, data, hashlib.sha256(data).hexdigest(), seconds)

    def _forget(self, key: tuple[str, str]) -> None:
        with self._lock, contextlib.suppress(KeyError):
            del self._made[key]

    def _make_room(self, new_bytes: int) -> None:
        """Forgets what was asked for longest ago; a reader that still sends it keeps its own reference."""
        with self._lock:
            sizes = {key: _size(future) for key, future in self._made.items() if future.done()}
            total, entries = new_bytes + sum(sizes.values()), len(self._made)
            for key, size in sizes.items():
                if total <= self._most_bytes and entries <= _MOST_ENTRIES:
                    return
                del self._made[key]
                total, entries = total - size, entries - 1


def _size(future: Future[Delta | None]) -> int:
    delta = None if future.cancelled() or future.exception() else future.result()
    return 0 if delta is None else len(delta.data)
