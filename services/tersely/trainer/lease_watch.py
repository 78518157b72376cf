"""Writes down leases that ran out and what became of them, so that `tersely invariants` can tell that none was left."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import redis

from tersely.queue.connect import redis_errors
from tersely.queue.entries import Fields
from tersely.queue.stream import RETURNED, WorkStream
from tersely.telemetry.events import EventLog

_FREE = ("for groups", "for completions")
"""What a node says that it waits for, while it would take a group."""
_SILENT_SECONDS = 4.0
"""A node whose last heartbeat is older may be dead: its last word does not say that it is free."""
_MOST = 64
_SLACK_SECONDS = 3.0
"""Heartbeats, which tell who is free, come every two seconds, and this looks once in one."""


@dataclass(slots=True)
class _Expired:
    """A lease that ran out and was not taken over yet."""

    group_id: str
    node_id: str
    held_seconds: float
    free_seconds: float = 0.0
    outlived: bool = False


class LeaseWatch:
    """Looks at the leases of workers and scorers; to be called about once a second.

    Args:
        client: Nobody else blocks on it.
        streams: Name, stream, and the role that takes from it, which is also the name of its consumer group.
        lease_seconds: After so long without a word a lease is free for everybody.
        events: Where it is written down.
        clock: Seconds, for how long a node has been free.
    """

    def __init__(
        self,
        client: redis.Redis,
        streams: Iterable[tuple[str, WorkStream, str]],
        lease_seconds: float,
        events: EventLog,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._streams = tuple(streams)
        self._lease_seconds = lease_seconds
        self._events = events
        self._clock = clock
        self._free_since: dict[str, float] = {}
        self._expired: dict[tuple[str, bytes], _Expired] = {}
        self._began = False

    def look(self, nodes: Iterable[Mapping[str, Any]]) -> None:
        """Compares what is leased with who lives.

        Args:
            nodes: Those alive, as status.json has them.

        Raises:
            QueueError: The server is away.
        """
        now = self._clock()
        alive = {str(node["node_id"]): node for node in nodes}
        free = [
            name
            for name, node in alive.items()
            if node["detail"] in _FREE and not node["leases"] and node.get("age_seconds", 0.0) < _SILENT_SECONDS
        ]
        self._free_since = {name: self._free_since.get(name, now) for name in free}
        if not self._began:
            self._events.write("leases_watched", lease_seconds=self._lease_seconds)
            self._began = True
        for name, stream, role in self._streams:
            waits = {node: now - since for node, since in self._free_since.items() if alive[node]["role"] == role}
            self._look_at(name, stream, role, waits, alive.keys())

    def _look_at(
        self, name: str, stream: WorkStream, role: str, waits: Mapping[str, float], alive: Collection[str]
    ) -> None:
        held = {entry_id: facts for entry_id, facts in self._pending(stream, role) if facts[0] != RETURNED}
        for key in [key for key in self._expired if key[0] == name]:
            lease = self._expired[key]
            if key[1] not in held or held[key[1]][0] != lease.node_id or held[key[1]][1] < lease.held_seconds:
                del self._expired[key]
                self._events.write("lease_recovered", **self._facts(name, lease))
        for entry_id, (node_id, idle_seconds) in held.items():
            found = self._expired.get((name, entry_id))
            if found is None:
                group_id = self._group_of(stream, entry_id)
                if group_id is None:
                    continue  # finished in this moment
                found = self._expired[name, entry_id] = _Expired(group_id, node_id, idle_seconds)
                self._events.write("lease_expired", alive=node_id in alive, **self._facts(name, found))
            found.held_seconds = idle_seconds
            # A node that was free before the lease ran out could take it only since then; its holder never could.
            longest = max((wait for node, wait in waits.items() if node != node_id), default=0.0)
            found.free_seconds = min(longest, idle_seconds - self._lease_seconds)
            if not found.outlived and found.free_seconds > self._lease_seconds + _SLACK_SECONDS:
                found.outlived = True
                self._events.write("lease_outlived", **self._facts(name, found))

    def _facts(self, name: str, lease: _Expired) -> dict[str, Any]:
        return {
            "stream": name,
            "node_id": lease.node_id,
            "group_id": lease.group_id,
            "held_seconds": round(lease.held_seconds, 3),
            "free_seconds": round(lease.free_seconds, 3),
        }

    def _pending(self, stream: WorkStream, role: str) -> list[tuple[bytes, tuple[str, float]]]:
        """Leases without a word for longer than their length: (entry, (holder, seconds))."""
        with redis_errors():
            idle: Any = self._client.xpending_range(
                stream.key, role, "-", "+", _MOST, idle=int(self._lease_seconds * 1000)
            )
        return [
            (entry["message_id"], (entry["consumer"].decode(), entry["time_since_delivered"] / 1000)) for entry in idle
        ]

    def _group_of(self, stream: WorkStream, entry_id: bytes) -> str | None:
        with redis_errors():
            found: Any = self._client.xrange(stream.key, entry_id, entry_id)
        fields: Fields = found[0][1] if found else {}
        return fields[b"g"].decode() if b"g" in fields else None
