"""Rates for heartbeats."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable


class RateMeter:
    """Events per second over a sliding window, e.g. sampled tokens. Thread-safe.

    Args:
        window_seconds: Length of the window, > 0.
        clock: Seconds from any origin; never goes back.
    """

    def __init__(self, window_seconds: float = 60.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._window = window_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._started = clock()
        self._items: deque[tuple[float, int]] = deque()
        self._sum = 0

    def add(self, count: int) -> None:
        """Counts so many events as of now."""
        with self._lock:
            self._items.append((self._clock(), count))
            self._sum += count
            self._drop_old()

    def per_second(self) -> float:
        """Events per second over the window, or since the start while that is shorter (but at least one second)."""
        with self._lock:
            self._drop_old()
            elapsed = min(self._window, self._clock() - self._started)
            return self._sum / max(elapsed, 1.0)

    def _drop_old(self) -> None:
        oldest = self._clock() - self._window
        while self._items and self._items[0][0] < oldest:
            self._sum -= self._items.popleft()[1]
