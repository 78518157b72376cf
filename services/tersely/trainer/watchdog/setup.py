"""Puts the watchdog together for one trainer."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tersely.node.drain import DrainSignal
from tersely.telemetry.events import read_events
from tersely.trainer.run_directory import RunDirectory
from tersely.trainer.watchdog.clock import AwakeClock
from tersely.trainer.watchdog.guard import Guard, RingProbes
from tersely.trainer.watchdog.observer import Observer
from tersely.trainer.watchdog.pace import Pace
from tersely.trainer.watchdog.watch import Watch

if TYPE_CHECKING:
    from tersely.trainer.session import Inputs, Stage


@dataclass(frozen=True, slots=True)
class Watched:
    """What the loop tells its phases, and whom the session asks in the end."""

    pace: Pace
    watch: Watch

    def check(self) -> None:
        """Raises RunStalled when the run was given up."""
        self.watch.check()


def watch_over(inputs: Inputs, stage: Stage, directory: RunDirectory, drain: DrainSignal, stack: ExitStack) -> Watched:
    """Starts the watchdog's thread; `stack` ends it.

    Args:
        inputs: What the run is made of.
        stage: Status, streams and events.
        directory: Of the run.
        drain: Set when the run is given up.
        stack: Closes what was opened.
    """
    clock = AwakeClock()
    pace = Pace(clock)
    pace.remember(read_events(stage.events.path))
    probes = RingProbes(inputs.client, stage.ring, stage.heartbeat, directory)
    observer = Observer(inputs.recipe, pace, clock, stage.status.snapshot, probes)
    watch = Watch(
        inputs.recipe.watchdog,
        pace,
        clock,
        observer.look,
        events=stage.events,
        show=lambda stall: stage.status.update(stall=stall),
    )
    guard = Guard(watch, drain, clock, inputs.recipe.up.drain_seconds)
    guard.start()
    stack.callback(guard.stop)
    return Watched(pace, watch)
