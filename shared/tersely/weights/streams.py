"""Streams that may last as long as they bring something."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    import grpc

_Message = TypeVar("_Message")


class Watched(Generic[_Message]):
    """A call's messages; the call is cancelled when the next one is waited for too long.

    A deadline for all of it would end a long copy over a slow line that gets on well. What the reader does between two
    messages does not count.

    Args:
        call: What is read; `close` leaves it to its owner to cancel.
        stall_seconds: Longest wait for one message.
    """

    def __init__(self, call: grpc._CallIterator[_Message], stall_seconds: float) -> None:
        self._call = call
        self._stall_seconds = stall_seconds
        self._waits_since: float | None = None
        self._closed = threading.Event()
        threading.Thread(target=self._watch, name="watch-stream", daemon=True).start()

    def __iter__(self) -> Iterator[_Message]:
        return self

    def __next__(self) -> _Message:
        self._waits_since = time.monotonic()
        try:
            return next(self._call)
        finally:
            self._waits_since = None

    def close(self) -> None:
        """Watches no longer."""
        self._closed.set()

    def _watch(self) -> None:
        left = self._stall_seconds
        while not self._closed.wait(left):
            since = self._waits_since
            left = self._stall_seconds if since is None else since + self._stall_seconds - time.monotonic()
            if left <= 0:
                self._call.cancel()
                return
