"""A clock that stands still while the machine sleeps or this process is stopped, and notices both."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

ASLEEP_SECONDS = 5.0
"""A wait that takes so much longer than asked was not spent waiting; a wall clock so far off was moved."""


@dataclass(frozen=True, slots=True)
class Jump:
    """A clock that moved on its own.

    Attributes:
        where: Whose clock: "this machine" or "the queue server".
        seconds: How far; negative: back.
        at: When it was noticed, by the awake clock.
    """

    where: str
    seconds: float
    at: float


class AwakeClock:
    """Seconds that this process was there to see.

    Args:
        monotonic: Seconds that never go back.
        wall: Unix seconds; may be moved.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic, wall: Callable[[], float] = time.time) -> None:
        self._monotonic = monotonic
        self._wall = wall
        self._slept = 0.0
        self._offset = wall() - monotonic()
        self.woke_at: float | None = None
        self.jumps: tuple[Jump, ...] = ()

    def __call__(self) -> float:
        """Seconds awake; only differences mean something."""
        return self._monotonic() - self._slept

    def wait(self, seconds: float, wait: Callable[[float], object]) -> None:
        """Waits, and looks afterwards whether more time went by than that.

        Args:
            seconds: How long.
            wait: Does it.
        """
        before = self._monotonic()
        wait(seconds)
        stopped = self._monotonic() - before - seconds
        if stopped > ASLEEP_SECONDS:
            self._slept += stopped
            self.woke_at = self()
        moved = self._wall() - self._monotonic() - self._offset
        if abs(moved) > ASLEEP_SECONDS:
            # A machine that slept comes back with a monotonic clock that stood still: the wall clock is ahead.
            self._offset += moved
            self.jumped("this machine", moved)
            if moved > 0:
                self.woke_at = self()

    def jumped(self, where: str, seconds: float) -> None:
        """Notes that a clock moved by itself; the last few are kept."""
        self.jumps = (*self.jumps[-3:], Jump(where, seconds, self()))
