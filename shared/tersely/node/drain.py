"""SIGTERM and Ctrl-C: the first asks a service to end in good order, the second ends it at once."""

from __future__ import annotations

import os
import queue
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class DrainSignal:
    """An event that SIGTERM or SIGINT sets. A second signal exits with 128 + its number (143 or 130).

    Use as a context manager, or `install` and `restore`, in the main thread.
    """

    def __init__(self) -> None:
        self.event = threading.Event()
        self._signals = 0
        self._before: dict[signal.Signals, Any] = {}
        # A handler may interrupt Event.wait() while it holds the event's lock, so Event.set() in a handler can hang;
        # SimpleQueue.put is made for handlers, and a thread sets the event.
        self._wake: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def install(self) -> Self:
        """Takes over both signals.

        Raises:
            ValueError: Called outside the main thread.
        """
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._on_signal)
        self._thread = threading.Thread(target=self._forward, name="drain-signal", daemon=True)
        self._thread.start()
        return self

    def restore(self) -> None:
        """Gives the signals back to the handlers from before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()
        if self._thread is not None:
            self._wake.put(False)
            self._thread.join()
            self._thread = None

    def set(self) -> None:
        """Asks for the drain from inside the program; not counted as a signal."""
        self.event.set()

    def is_set(self) -> bool:
        """Whether to drain."""
        return self.event.is_set()

    def wait(self, timeout_seconds: float | None = None) -> bool:
        """Waits for the request to drain; returns whether it came."""
        return self.event.wait(timeout_seconds)

    def __enter__(self) -> Self:
        return self.install()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.restore()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1
        if self._signals > 1:
            os._exit(128 + number)
        self._wake.put(True)

    def _forward(self) -> None:
        while self._wake.get():
            self.event.set()
