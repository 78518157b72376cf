"""Puts together what is known of the run at this moment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from tersely.config import Recipe
from tersely.errors import QueueError, RedisUnreachable
from tersely.trainer.watchdog.clock import ASLEEP_SECONDS, AwakeClock
from tersely.trainer.watchdog.pace import Pace, Phase
from tersely.trainer.watchdog.people import People
from tersely.trainer.watchdog.snapshot import Snapshot, Stream, Trouble

PROBE_AFTER_SECONDS = 3.0
"""A step in which nothing came back for so long is looked at more closely."""
_OUTCOMES = ("stale", "no_signal", "quarantined")


class Probes(Protocol):
    """What is asked only while something may be wrong."""

    def write(self) -> None:
        """Writes something small to Redis; raises QueueError."""

    def holders(self) -> Mapping[str, Mapping[str, int]]:
        """Entries leased per node, per stream; raises QueueError."""

    def server_seconds(self) -> float:
        """Unix time of the queue server; raises QueueError."""

    def wall_seconds(self) -> float:
        """Unix time of this machine."""

    def disk_free_bytes(self) -> int:
        """Of the run directory."""

    def cpu_seconds(self) -> float:
        """That this process has used."""


class Observer:
    """Remembers what only a comparison of two moments tells: since when a node has been still, a server away.

    Args:
        recipe: Settings.
        pace: What the loop is at.
        clock: Seconds awake.
        status: Gives the state as in status.json, with nodes, queues and groups as Redis last told them.
        probes: For a closer look.
    """

    def __init__(
        self, recipe: Recipe, pace: Pace, clock: AwakeClock, status: Callable[[], Mapping[str, Any]], probes: Probes
    ) -> None:
        self._recipe = recipe
        self._pace = pace
        self._clock = clock
        self._status = status
        self._probes = probes
        self._people = People()
        self._phase: tuple[str, float] | None = None
        self._totals: Mapping[str, int] = {}
        self._absent = 0
        self._cpu_seconds = 0.0
        self._failing: dict[str, float] = {}
        self._redis_back_at: float | None = None
        self._server_offset: float | None = None

    def look(self) -> Snapshot:
        """The moment."""
        now, status, phase = self._clock(), self._status(), self._pace.now
        self._people.heard(status.get("nodes") or (), now)
        groups = status.get("groups") or {}
        absent, reason = self._pace.absent
        began = None if phase is None else (phase.name, phase.began)
        if began != self._phase:
            self._phase, self._absent = began, absent
            self._totals = {name: int(groups.get(name, 0)) for name in _OUTCOMES}
            self._cpu_seconds = self._probes.cpu_seconds()
        close = phase is not None and now - phase.progressed >= PROBE_AFTER_SECONDS
        holders: Mapping[str, Mapping[str, int]] = {}
        writing = None
        if close or "writing" in self._failing:
            writing, holders = self._ask_redis(now)
        queue_error = status.get("queue_error")
        nodes, gone = self._people.now(now)
        return Snapshot(
            phase=phase,
            policy_version=int(status.get("policy_version", 0)),
            groups_per_step=self._recipe.run.groups_per_step,
            max_staleness=self._recipe.run.max_staleness,
            lease_seconds=self._recipe.queue.lease_seconds,
            nodes=nodes,
            gone=gone,
            streams={
                name: Stream(depth["waiting"], depth["leased"], holders.get(name, {}))
                for name, depth in (status.get("queues") or {}).items()
            },
            fell_out={
                name: count for name in _OUTCOMES if (count := int(groups.get(name, 0)) - self._totals.get(name, 0)) > 0
            },
            absent=absent - self._absent,
            absent_reason=reason,
            evaluating=status.get("evaluation") is not None,
            missing=_missing(groups),
            reading=self._trouble("reading", queue_error, _kind_of(queue_error), now),
            writing=writing,
            disk_free_bytes=self._probes.disk_free_bytes() if close else None,
            cpu_share=self._cpu_share(phase, now) if close else None,
            jumps=self._clock.jumps,
            woke_at=self._clock.woke_at,
            redis_back_at=self._redis_back_at,
            judged="judge" in self._recipe.rewards,
        )

    def _ask_redis(self, now: float) -> tuple[Trouble | None, Mapping[str, Mapping[str, int]]]:
        try:
            self._probes.write()
            holders = self._probes.holders()
            self._compare_clocks(self._probes.server_seconds() - self._probes.wall_seconds())
        except QueueError as error:
            self._failing.setdefault("writing", now)  # a server that is stopped lets the asker wait first
            return self._trouble("writing", error.message, error.kind, self._clock()), {}
        return self._trouble("writing", None, "", now), holders

    def _compare_clocks(self, offset: float) -> None:
        before, self._server_offset = self._server_offset, offset
        if before is None or abs(offset - before) <= ASLEEP_SECONDS:
            return
        if not any(abs(jump.seconds + offset - before) <= ASLEEP_SECONDS for jump in self._clock.jumps):
            self._clock.jumped("the queue server", offset - before)

    def _trouble(self, what: str, message: str | None, kind: str, now: float) -> Trouble | None:
        if not message:
            if self._failing.pop(what, None) is not None:
                self._redis_back_at = now
            return None
        return Trouble(kind, message, now - self._failing.setdefault(what, now))

    def _cpu_share(self, phase: Phase | None, now: float) -> float | None:
        if phase is None or now - phase.began < PROBE_AFTER_SECONDS:
            return None
        return max(0.0, self._probes.cpu_seconds() - self._cpu_seconds) / (now - phase.began)


def _kind_of(queue_error: str | None) -> str:
    """The status has only the message."""
    return RedisUnreachable.kind if queue_error and "does not answer" in queue_error else QueueError.kind


def _missing(groups: Mapping[str, int]) -> int:
    known = sum(int(groups.get(name, 0)) for name in (*_OUTCOMES, "trained", "in_flight"))
    return max(0, int(groups.get("issued", 0)) - known)
