"""Says what holds a step up, when it is over, and gives up where it is told to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import structlog

from tersely.config.watchdog import WatchdogSection
from tersely.errors import RunStalled
from tersely.telemetry.events import EventLog
from tersely.trainer.watchdog.clock import AwakeClock
from tersely.trainer.watchdog.diagnose import diagnose, settles
from tersely.trainer.watchdog.finding import SLOW, SURE, Finding
from tersely.trainer.watchdog.pace import Pace
from tersely.trainer.watchdog.snapshot import Snapshot

log = structlog.get_logger(__name__)

CONFIRMED_TICKS = 3
"""The same has to be found so often in a row, a second apart, before it is said."""


class Watch:
    """Looks at the run once a second.

    Args:
        settings: From when on something is late, and when to give up.
        pace: What the loop is at, and its history.
        clock: Seconds awake.
        look: Gives the moment.
        events: Where findings go.
        show: Takes `stall`, as in status.json; None: nothing stalls.
    """

    def __init__(
        self,
        settings: WatchdogSection,
        pace: Pace,
        clock: AwakeClock,
        look: Callable[[], Snapshot],
        *,
        events: EventLog,
        show: Callable[[Mapping[str, Any] | None], None],
    ) -> None:
        self._settings = settings
        self._pace = pace
        self._clock = clock
        self._look = look
        self._events = events
        self._show = show
        self._candidate: tuple[str, str] | None = None
        self._times = 0
        self._since = 0.0
        self.said: Finding | None = None
        self.gave_up: Finding | None = None

    def tick(self) -> Finding | None:
        """Looks once; gives what stalls the run now, as far as it is sure."""
        snapshot, now = self._look(), self._clock()
        if settles(snapshot, now):
            self._pace.held_up()
        found = diagnose(self._pace.past(), snapshot, now, self._settings)
        if found is None:
            self._candidate = None
            if self.said is not None:
                self._over()
            return None
        key = (found.name, found.node_id)
        self._times = self._times + 1 if key == self._candidate else 1
        self._candidate = key
        if self._times >= CONFIRMED_TICKS or found.name in SURE:
            self._confirmed(found)
        return self.said

    def check(self) -> None:
        """Raises RunStalled when it gave the run up."""
        if self.gave_up is not None:
            raise stalled(self.gave_up)

    def _confirmed(self, found: Finding) -> None:
        if found.name not in SLOW:
            self._pace.held_up()
        if self.said is None:
            self._since = self._clock()
        if self.said is None or (self.said.name, self.said.node_id) != (found.name, found.node_id):
            log.warning("the step is held up", stall=found.name, part=found.part, message=found.message)
            self._events.write("stall", **found.shown())
        self.said = found
        self._show({**found.shown(), "stalled_seconds": round(self._clock() - self._since, 1)})
        limit = self._settings.give_up_seconds
        if limit is not None and self.gave_up is None and self._clock() - self._since >= limit:
            self.gave_up = found
            self._events.write("run_gave_up", **found.shown(), give_up_seconds=limit)
            log.error("the run is given up", stall=found.name, part=found.part, give_up_seconds=limit)

    def _over(self) -> None:
        assert self.said is not None
        seconds = round(self._clock() - self._since, 1)
        log.info("the step goes on", stall=self.said.name, seconds=seconds)
        self._events.write("stall_over", name=self.said.name, step=self.said.step, seconds=seconds)
        self.said = None
        self._show(None)


def stalled(finding: Finding) -> RunStalled:
    """The error of a run that was given up."""
    return RunStalled(
        f"Step {finding.step} stalls ({finding.name}, {finding.part}): {finding.message} {finding.cause}",
        f"{finding.change} Then go on with --resume.",
    )
