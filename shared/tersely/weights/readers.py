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

from tersely.weights.snapshot import Snapshot

_STATUS_SECONDS = 1.0
_log = structlog.get_logger(__name__)


@dataclass(slots=True, eq=False)
class _Reader:
    node_id: str
    snapshot: Snapshot
    task: asyncio.Task[object]
    context: grpc.aio.ServicerContext[Any, Any]
    moved_at: float


class Readers:
    """Bounds what readers keep alive: a stream holds its version's payload even when the store has dropped it.

    Ended are a stream whose reader takes no chunk for too long, and, where streams hold more than so many dropped
    versions, those of the oldest. Their readers resume, and learn which versions there are.

    Args:
        is_held: Whether the store still holds a snapshot.
        stall_seconds: Longest time for one chunk.
        most_dropped: Versions that only streams hold.
    """

    def __init__(self, is_held: Callable[[Snapshot], bool], stall_seconds: float = 60.0, most_dropped: int = 2) -> None:
        self._is_held = is_held
        self._stall_seconds = stall_seconds
        self._most_dropped = most_dropped
        # In order of arrival.
        self._readers: dict[_Reader, None] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self.ended = 0

    @contextmanager
    def reading(
        self, node_id: str, snapshot: Snapshot, context: grpc.aio.ServicerContext[Any, Any]
    ) -> Iterator[Callable[[], None]]:
        """Inside, the running task sends a snapshot; to be called with each chunk: what it gives."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        reader = _Reader(node_id, snapshot, task, context, loop.time())
        self._readers[reader] = None
        self._end_oldest()

        timer: asyncio.TimerHandle | None = None

        def watch() -> None:
            nonlocal timer
            left = reader.moved_at + self._stall_seconds - loop.time()
            if left <= 0:
                self._end(reader, "it takes no chunk")
            else:
                timer = loop.call_later(left, watch)

        timer = loop.call_later(self._stall_seconds, watch)

        def moved() -> None:
            reader.moved_at = loop.time()
            self._end_oldest()

        try:
            yield moved
        finally:
            timer.cancel()
            self._readers.pop(reader, None)

    def _end_oldest(self) -> None:
        dropped = {id(r.snapshot): r.snapshot for r in self._readers if not self._is_held(r.snapshot)}
        for snapshot in list(dropped.values())[: max(0, len(dropped) - self._most_dropped)]:
            for reader in [r for r in self._readers if r.snapshot is snapshot]:
                self._end(reader, "too many versions are held by readers alone")

    def _end(self, reader: _Reader, why: str) -> None:
        if reader not in self._readers:
            return
        del self._readers[reader]
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
