"""What the loop is at, since when, and how long that took before."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from tersely.trainer.watchdog.clock import AwakeClock

COLLECT, LOG, LEARN, PUBLISH, CHECKPOINT, EVALUATION = "collect", "log", "learn", "publish", "checkpoint", "evaluation"
WAITS = frozenset({COLLECT, EVALUATION})
"""Phases in which the trainer waits for others."""
REMEMBERED = 200
_KEYS_OF_EVENTS = {"wait": COLLECT, "log": LOG, "learn": LEARN, "publish": PUBLISH}


@dataclass(frozen=True, slots=True)
class Past:
    """How long a phase took before, oldest first.

    Attributes:
        durations: From begin to end, seconds.
        gaps: Longest time without an arrival within each, seconds; empty for phases in which nothing arrives.
    """

    durations: tuple[float, ...] = ()
    gaps: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Phase:
    """What the loop is at.

    Attributes:
        name: One of this module's constants.
        step: Being trained, from 1.
        began: By the awake clock.
        progressed: When something last arrived; `began` where nothing has.
        longest_gap: Between two arrivals so far.
        arrived: Groups that have come back since it began, whatever became of them.
    """

    name: str
    step: int
    began: float
    progressed: float
    longest_gap: float = 0.0
    arrived: int = 0


class Pace:
    """Written by the loop's thread, read by the watchdog's.

    Args:
        clock: Seconds awake.
    """

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        self._clock = clock or AwakeClock()
        self._lock = threading.Lock()
        self._phase: Phase | None = None
        self._seen = 0
        self._collected: Phase | None = None
        self._first_step: int | None = None
        self._stalled = False
        self._unscored: tuple[int, str] = (0, "")
        self._durations: dict[str, deque[float]] = {}
        self._gaps: dict[str, deque[float]] = {}

    @contextmanager
    def phase(self, name: str, step: int) -> Iterator[None]:
        """The block is a phase of a step; how long it takes is remembered if it ends well and was not held up.

        Args:
            name: One of this module's constants.
            step: From 1.
        """
        now = self._clock()
        with self._lock:
            phase = Phase(name, step, now, now)
            if self._collected is not None and (name, step) == (COLLECT, self._collected.step):
                phase = self._collected  # a batch of nothing is tried for again; the step has not begun anew
            outer, self._phase, self._stalled = self._phase, phase, False
            if self._first_step is None:
                self._first_step = step
        try:
            yield
        except BaseException:
            with self._lock:
                self._phase = outer
            raise
        with self._lock:
            ended, self._phase = self._phase, outer
            if name == COLLECT:
                self._collected = ended
            if not self._stalled:
                self._remember(ended, self._clock())
            self._stalled = False

    def arrived(self, count: int) -> None:
        """Tells how many groups have come back in all; a number that grows is progress."""
        with self._lock:
            new = count - self._seen
            self._seen = count
            phase = self._phase
            if phase is not None and new > 0:
                now = self._clock()
                gap = max(phase.longest_gap, now - phase.progressed)
                self._phase = replace(phase, progressed=now, longest_gap=gap, arrived=phase.arrived + new)

    def unscored(self, reason: str) -> None:
        """Counts a group that fell out because a reward was absent, with the reason that was given."""
        with self._lock:
            self._unscored = self._unscored[0] + 1, reason

    @property
    def absent(self) -> tuple[int, str]:
        """How many groups fell out for want of a reward so far, and the last reason."""
        with self._lock:
            return self._unscored

    @property
    def now(self) -> Phase | None:
        """What the loop is at; None: between two phases."""
        with self._lock:
            return self._phase

    def held_up(self) -> None:
        """Tells that the phase of this moment stalls: how long it takes says nothing about the next."""
        with self._lock:
            self._stalled = True

    def past(self) -> Mapping[str, Past]:
        """History of each phase that has ended at least once."""
        with self._lock:
            return {
                name: Past(tuple(durations), tuple(self._gaps.get(name, ())))
                for name, durations in self._durations.items()
            }

    def remember(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Takes the history over that an earlier trainer of the run left in its events."""
        for event in events:
            if event.get("kind") != "step_finished" or event.get("replayed"):
                continue
            seconds = event.get("seconds") or {}
            for key, name in _KEYS_OF_EVENTS.items():
                if isinstance(seconds.get(key), int | float):
                    self._durations.setdefault(name, deque(maxlen=REMEMBERED)).append(float(seconds[key]))

    def _remember(self, phase: Phase | None, now: float) -> None:
        if phase is None:
            return
        if phase.name == COLLECT and phase.step == self._first_step:
            return  # workers had to come first
        self._durations.setdefault(phase.name, deque(maxlen=REMEMBERED)).append(now - phase.began)
        if phase.name in WAITS:
            gap = max(phase.longest_gap, now - phase.progressed)
            self._gaps.setdefault(phase.name, deque(maxlen=REMEMBERED)).append(gap)
