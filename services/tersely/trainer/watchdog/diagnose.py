"""Names what holds a step up: a pure function of the run's history, one moment of it, and the time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from tersely.config.watchdog import WatchdogSection
from tersely.trainer.watchdog import own, workers
from tersely.trainer.watchdog.finding import Finding
from tersely.trainer.watchdog.limits import Late, lateness
from tersely.trainer.watchdog.pace import WAITS, Past
from tersely.trainer.watchdog.scorers import scorers_hold
from tersely.trainer.watchdog.snapshot import Snapshot

SETTLE_SECONDS = 30.0
"""After this machine woke nothing is said for so long: leases, connections and heartbeats have to come back first."""
REJOIN_SECONDS = 15.0
"""After the queue server came back: heartbeats have to be written, and workers to join."""
PLAIN_SECONDS = 20.0
"""What is plainly broken, such as a run without a worker, is said after so long, whatever the history."""


def diagnose(history: Mapping[str, Past], snapshot: Snapshot, now: float, settings: WatchdogSection) -> Finding | None:
    """What holds the step in hand up.

    Args:
        history: Of the phases that ended.
        snapshot: The moment.
        now: By the awake clock.
        settings: From when on something is late.

    Returns:
        None: nothing that takes longer than it should.
    """
    phase = snapshot.phase
    if phase is None or settles(snapshot, now):
        return None
    quiet = now - phase.progressed
    late = lateness(history, snapshot, now, settings)
    if phase.name not in WAITS:
        found = None if late is None else own.trainer_holds(snapshot, late)
    else:
        found = own.redis_fails(snapshot)
        if found is None and late is not None:
            found = _ring_holds(snapshot, late, now)
        elif found is None and quiet > PLAIN_SECONDS:
            found = workers.nobody_there(snapshot)
        if found is None and now - phase.began > PLAIN_SECONDS:
            found = own.all_fall_out(snapshot)
    if found is None:
        return None
    shown = late or Late(quiet, min(PLAIN_SECONDS, quiet))
    return replace(found, step=phase.step, phase=phase.name, seconds=shown.seconds, limit_seconds=shown.limit_seconds)


def settles(snapshot: Snapshot, now: float) -> bool:
    """Whether the machine woke, or the queue server came back, so lately that nothing can be said yet."""
    woke, back = snapshot.woke_at, snapshot.redis_back_at
    return (woke is not None and now - woke < SETTLE_SECONDS) or (back is not None and now - back < REJOIN_SECONDS)


def _ring_holds(snapshot: Snapshot, late: Late, now: float) -> Finding:
    """Which part of the ring keeps groups from coming back, from what is plain to what is left over."""
    return (
        own.node_without_disk(snapshot)
        or own.groups_fall_out(snapshot)
        or own.clock_jumped(snapshot, now)
        or workers.nobody_there(snapshot)
        or scorers_hold(snapshot, late)
        or workers.workers_hold(snapshot, late)
        or own.groups_missing(snapshot)
        or own.evaluation_holds(snapshot)
        or own.unexplained(snapshot)
    )
