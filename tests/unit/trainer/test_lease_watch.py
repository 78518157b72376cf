"""Leases that ran out are written down with who held them, how long, and beside whom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import redis

from tersely.queue import WorkStream
from tersely.telemetry.events import EventLog, read_events
from tersely.trainer.lease_watch import LeaseWatch
from tersely.types import GroupId

LEASE = 5.0
KEY = "t:{r-test}:prompts"


class Watched:
    """A stream with a worker that holds one group, and a watch whose clock stands still."""

    def __init__(self, client: redis.Redis, path: Path) -> None:
        self.client = client
        self.now = 0.0
        self.events = EventLog(path)
        self.dead, self.other = (
            WorkStream(client, KEY, "rollout", name, lease_seconds=LEASE, quarantine_key="t:{r-test}:quarantine")
            for name in ("rollout-dead", "rollout-other")
        )
        self.dead.create()
        self.dead.add(GroupId("g0"), b"")
        (self.lease,) = self.dead.lease(1, 0)
        self.watch = LeaseWatch(client, [("prompts", self.dead, "rollout")], LEASE, self.events, lambda: self.now)

    def silent_for(self, seconds: float) -> None:
        """As if the holder had last renewed so long ago."""
        idle = int(seconds * 1000)
        self.client.xclaim(KEY, "rollout", "rollout-dead", 0, [self.lease.entry_id], idle=idle, justid=True)

    def look(self, *free: str) -> None:
        self.watch.look([{"node_id": name, "role": "rollout", "detail": "for groups", "leases": 0} for name in free])

    def written(self) -> list[dict[str, Any]]:
        return [event for event in read_events(self.events.path) if event["kind"] != "leases_watched"]


@pytest.fixture
def watched(valkey_client: redis.Redis, tmp_path: Path):
    found = Watched(valkey_client, tmp_path / "events.jsonl")
    yield found
    found.events.close()


def kinds(events: list[dict[str, Any]]) -> list[str]:
    return [event["kind"] for event in events]


def test_a_lease_that_is_renewed_is_no_event(watched: Watched) -> None:
    watched.look("rollout-other")
    watched.silent_for(LEASE - 1)
    watched.look("rollout-other")
    assert watched.written() == []
    assert [event["lease_seconds"] for event in read_events(watched.events.path)] == [LEASE]


def test_one_taken_over_in_time_is_expired_and_recovered(watched: Watched) -> None:
    watched.silent_for(LEASE + 1)
    watched.look("rollout-other")
    (again,) = watched.other.lease(1, 0)
    assert again.group_id == "g0"
    watched.look("rollout-other")
    expired, recovered = watched.written()
    assert (expired["kind"], expired["node_id"], expired["group_id"]) == ("lease_expired", "rollout-dead", "g0")
    assert expired["alive"] is False
    assert recovered["kind"] == "lease_recovered"
    assert LEASE < recovered["held_seconds"] < 2 * LEASE


def test_one_left_beside_a_free_node_is_named_once(watched: Watched) -> None:
    watched.silent_for(LEASE + 1)
    watched.look("rollout-other")
    watched.now = 20.0
    watched.silent_for(4 * LEASE)
    watched.look("rollout-other")
    watched.look("rollout-other")
    assert kinds(watched.written()) == ["lease_expired", "lease_outlived"]
    assert watched.written()[1]["free_seconds"] == pytest.approx(3 * LEASE, abs=0.5)


def test_one_that_nobody_could_take_is_not_outlived(watched: Watched) -> None:
    watched.silent_for(LEASE + 1)
    watched.look()
    watched.now = 100.0
    watched.silent_for(100.0)
    watched.look()
    watched.look("rollout-other")  # joins only now
    assert kinds(watched.written()) == ["lease_expired"]


def test_one_given_back_is_nobodys(watched: Watched) -> None:
    own = WorkStream(
        watched.client, KEY, "rollout", "rollout-dead", lease_seconds=LEASE, quarantine_key="q", adds_back=False
    )
    own.give_back(watched.lease)
    watched.look("rollout-other")
    assert watched.written() == []


def test_the_last_words_of_its_dead_holder_and_of_a_silent_node_make_nobody_free(watched: Watched) -> None:
    words = {"role": "rollout", "detail": "for groups", "leases": 0}
    nodes = [
        {"node_id": "rollout-dead", "age_seconds": 1.0, **words},
        {"node_id": "rollout-other", "age_seconds": 7.0, **words},
    ]
    watched.watch.look(nodes)
    watched.now = 100.0
    watched.silent_for(3 * LEASE)
    watched.watch.look(nodes)
    (expired,) = watched.written()
    assert (expired["kind"], expired["free_seconds"]) == ("lease_expired", 0.0)
