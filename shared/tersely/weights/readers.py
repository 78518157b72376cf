"""Streams that are being read, and the end of those that are not."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import structlog

from tersely.types import WeightsLabel
from tersely.weights.snapshot import Snapshot

_STATUS_SECONDS = 1.0
_MOST_BROKEN = 256
MOST_DROPPED = 2
"""Versions that only readers hold, at most."""
_log = structlog.get_logger(__name__)


@dataclass(slots=True, eq=False)
class _Reader:
    node_id: str
    snapshot: Snapshot
    began_at: float
    moved_at: float
    task: asyncio.Task[object]
    context: grpc.aio.ServicerContext[Any, Any]
    waits: bool = True


class Readers:
    """Bounds what readers keep alive: a stream holds its version's payload even when the store has dropped it.

    A version whose stream broke is kept for a while for the same node, which may take it up again. Ended is a stream
    whose reader takes no chunk for too long. Where readers hold more than so many dropped versions, given up are those
    that nobody reads, then those read by readers that stall, then those begun last: whoever reads steadily is not ended
    for one that came later, so that some always get to the end. Who is ended finds its version gone, and takes one that
    is held.

    Args:
        is_held: Whether the store still holds a snapshot.
        stall_seconds: Longest time for one chunk.
        most_dropped: Versions that only readers hold.
        resumable_seconds: How long a version is kept for a node whose stream of it broke.
    """

    def __init__(
        self,
        is_held: Callable[[Snapshot], bool],
        stall_seconds: float = 60.0,
        most_dropped: int = MOST_DROPPED,
        resumable_seconds: float = 120.0,
    ) -> None:
        self._is_held = is_held
        self._stall_seconds = stall_seconds
        self._most_dropped = most_dropped
        self._resumable_seconds = resumable_seconds
        # In order of arrival.
        self._readers: dict[_Reader, None] = {}
        self._broken: dict[tuple[str, WeightsLabel], _Reader] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self.ended = 0

    @contextmanager
    def reading(
        self, node_id: str, snapshot: Snapshot, context: grpc.aio.ServicerContext[Any, Any]
    ) -> Iterator[Callable[[], None]]:
        """Inside, the running task sends a snapshot; to be called with each chunk: what it gives.

        Before the first call it waits for something to send, which is no stalling.
        """
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        now = loop.time()
        before = self._broken.pop((node_id, snapshot.label), None)
        reader = _Reader(node_id, snapshot, before.began_at if before is not None else now, now, task, context)
        self._readers[reader] = None
        self._make_room()

        timer: asyncio.TimerHandle | None = None

        def watch() -> None:
            nonlocal timer
            left = self._stall_seconds if reader.waits else reader.moved_at + self._stall_seconds - loop.time()
            if left <= 0:
                self._end(reader, "it takes no chunk", resumable=True)
            else:
                timer = loop.call_later(left, watch)

        timer = loop.call_later(self._stall_seconds, watch)

        def moved() -> None:
            reader.waits, reader.moved_at = False, loop.time()
            self._make_room()

        try:
            yield moved
        except (GeneratorExit, asyncio.CancelledError):
            if reader in self._readers:
                self._keep_broken(reader)
            raise
        finally:
            timer.cancel()
            self._readers.pop(reader, None)

    def find(self, node_id: str, label: WeightsLabel) -> Snapshot | None:
        """What a node has begun to read and may go on with, whether or not the store still holds it."""
        broken = self._broken.get((node_id, label))
        # The end of the old stream may not have been noticed here yet.
        reading = (r for r in self._readers if r.node_id == node_id and r.snapshot.label == label)
        reader = broken or next(reading, None)
        return reader.snapshot if reader is not None else None

    def _keep_broken(self, reader: _Reader) -> None:
        key = reader.node_id, reader.snapshot.label
        self._broken.pop(key, None)
        self._broken[key] = reader
        while len(self._broken) > _MOST_BROKEN:
            del self._broken[next(iter(self._broken))]
        asyncio.get_running_loop().call_later(self._resumable_seconds, self._forget, key, reader)

    def _forget(self, key: tuple[str, WeightsLabel], reader: _Reader) -> None:
        if self._broken.get(key) is reader:
            del self._broken[key]

    def _make_room(self) -> None:
        everyone = [*self._readers, *self._broken.values()]
        dropped = {id(r.snapshot): r.snapshot for r in everyone if not self._is_held(r.snapshot)}
        if len(dropped) <= self._most_dropped:
            return
        by_worth = sorted(dropped.values(), key=self._worth)
        for snapshot in by_worth[: len(dropped) - self._most_dropped]:
            for key in [key for key, r in self._broken.items() if r.snapshot is snapshot]:
                del self._broken[key]
            for reader in [r for r in self._readers if r.snapshot is snapshot]:
                self._end(reader, "too many versions are held by readers alone", resumable=False)

    def _worth(self, snapshot: Snapshot) -> tuple[int, float]:
        """The least is given up first."""
        now = asyncio.get_running_loop().time()
        reading = [r for r in self._readers if r.snapshot is snapshot]
        steady = [r for r in reading if r.waits or now - r.moved_at < self._stall_seconds / 4]
        if steady:
            return 2, -min(r.began_at for r in steady)
        if reading:
            return 1, max(r.moved_at for r in reading)
        return 0, max(r.moved_at for r in self._broken.values() if r.snapshot is snapshot)

    def _end(self, reader: _Reader, why: str, *, resumable: bool) -> None:
        if reader not in self._readers:
            return
        del self._readers[reader]
        if resumable:
            self._keep_broken(reader)
        self.ended += 1
        _log.warning("reader_ended", node_id=reader.node_id, weights=str(reader.snapshot.label), reason=why)
        task = asyncio.get_running_loop().create_task(_abort(reader))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)


async def _abort(reader: _Reader) -> None:
    """Ends a call whose handler may wait for ever: with a status first, else its reader never hears of it."""
    with contextlib.suppress(grpc.aio.AbortError, asyncio.TimeoutError):
        abort = reader.context.abort(grpc.StatusCode.UNAVAILABLE, "The stream was ended: it was read too slowly.")
        await asyncio.wait_for(abort, _STATUS_SECONDS)
    reader.task.cancel()
