"""What stands between a judgement and a call: a rate, a circuit breaker, a budget. All are safe to share by threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

Clock = Callable[[], float]
Outcome = Literal["answered", "failed", "not made"]


class RateLimit:
    """Lets calls begin at even distances, and none before a time that the endpoint named.

    Args:
        per_minute: Most calls begun per minute; None: as many as want to.
        clock: Monotonic seconds.
    """

    def __init__(self, per_minute: float | None, clock: Clock = time.monotonic) -> None:
        self._distance = 60.0 / per_minute if per_minute else 0.0
        self._clock = clock
        self._lock = threading.Lock()
        self._next = 0.0
        self._not_before = 0.0

    def reserve(self) -> float:
        """Takes the next turn; returns the seconds until it."""
        with self._lock:
            now = self._clock()
            turn = max(now, self._next, self._not_before)
            self._next = turn + self._distance
            return turn - now

    def hold(self, seconds: float) -> None:
        """Lets nobody begin for so long: the endpoint asked for it."""
        with self._lock:
            self._not_before = max(self._not_before, self._clock() + seconds)


class Circuit:
    """Leaves an endpoint alone that fails every time, and lets one call at a time find out whether it is back.

    Args:
        failures: Failed calls in a row that open it.
        cooldown_seconds: How long nobody calls then.
        clock: Monotonic seconds.

    Attributes:
        opened: Times it opened.
    """

    def __init__(self, failures: int, cooldown_seconds: float, clock: Clock = time.monotonic) -> None:
        self._limit = failures
        self._cooldown = cooldown_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._failed = 0
        self._open_until: float | None = None
        self._trying = False
        self.opened = 0

    def allows(self) -> bool:
        """Whether a call may be made now; after the cooldown only to the first that asks, until its end is booked."""
        with self._lock:
            if self._open_until is None:
                return True
            if self._trying or self._clock() < self._open_until:
                return False
            self._trying = True
            return True

    def book(self, outcome: Outcome) -> None:
        """Says how an allowed call ended; one that was not made after all only hands its turn back."""
        with self._lock:
            trying, self._trying = self._trying, False
            if outcome == "answered":
                self._failed, self._open_until = 0, None
            elif outcome == "failed":
                self._failed += 1
                if trying or (self._open_until is None and self._failed >= self._limit):
                    self.opened += 1
                    self._open_until = self._clock() + self._cooldown


@dataclass(frozen=True, slots=True)
class Used:
    """Tokens, read and written."""

    read: int
    written: int


class Budget:
    """Tokens and money that may be used; a call is paid for before it is made, at the most it can cost.

    What a call really took replaces that when it is known. So the budget is never passed, however many calls are in
    flight, as long as the endpoint keeps to the longest answer and a prompt has no more tokens than was assumed.

    Args:
        tokens: Most tokens; None: no limit.
        cost: Most money; None: no limit.
        price_read: Money per million tokens read.
        price_written: Money per million tokens written.
    """

    def __init__(
        self, tokens: int | None = None, cost: float | None = None, price_read: float = 0.0, price_written: float = 0.0
    ) -> None:
        self._tokens = tokens
        self._cost = cost
        self._prices = (price_read / 1e6, price_written / 1e6)
        self._lock = threading.Condition()
        self._read = 0
        self._written = 0
        self._held: list[Used] = []
        self.refused = 0

    def take(self, most: Used) -> bool:
        """Sets the most that a call can take aside; False, and counted, where that is more than is left.

        Waits while only the calls in flight stand in the way: they mostly take less than was set aside for them.
        """
        with self._lock:
            while not self._fits(most, [*self._held]):
                if not self._held or not self._fits(most, []):
                    self.refused += 1
                    return False
                self._lock.wait()
            self._held.append(most)
            return True

    def settle(self, most: Used, used: Used) -> None:
        """Books what the call took in place of what was set aside."""
        with self._lock:
            self._held.remove(most)
            self._read += used.read
            self._written += used.written
            self._lock.notify_all()

    @property
    def used(self) -> Used:
        """What was booked so far."""
        with self._lock:
            return Used(self._read, self._written)

    @property
    def cost(self) -> float:
        """Money for it, in the unit of the prices."""
        with self._lock:
            return self._price(self._read, self._written)

    def _fits(self, most: Used, held: Sequence[Used]) -> bool:
        read = self._read + most.read + sum(one.read for one in held)
        written = self._written + most.written + sum(one.written for one in held)
        if self._tokens is not None and read + written > self._tokens:
            return False
        return self._cost is None or self._price(read, written) <= self._cost

    def _price(self, read: int, written: int) -> float:
        return read * self._prices[0] + written * self._prices[1]
