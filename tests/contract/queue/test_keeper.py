"""Leases are kept while work goes on, in every server."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import pytest
import redis

from tersely.errors import RedisUnreachable
from tersely.queue import Lease, LeaseKeeper, WorkStream
from tersely.types import GroupId

MakeStream = Callable[..., WorkStream]


def test_held_lease_outlives_its_time_and_expires_after_the_keeper_stops(make_stream: MakeStream):
    a, b = make_stream("a"), make_stream("b")
    a.add(GroupId("g1"), b"p")
    (lease,) = a.lease(1, 0)
    with LeaseKeeper(a) as keeper:
        keeper.hold(lease)
        assert b.lease(1, 0.8) == []
        assert (keeper.count, keeper.lost(lease)) == (1, False)
    assert len(b.lease(1, 1.0)) == 1


def test_released_lease_is_no_longer_renewed(make_stream: MakeStream):
    a, b = make_stream("a"), make_stream("b")
    a.add(GroupId("g1"), b"p")
    (lease,) = a.lease(1, 0)
    with LeaseKeeper(a) as keeper:
        keeper.hold(lease)
        keeper.release(lease)
        assert len(b.lease(1, 1.0)) == 1
        assert (keeper.count, keeper.lost(lease)) == (0, False)


def test_keeper_notices_a_lost_lease_and_goes_on_with_others(make_stream: MakeStream, client: redis.Redis):
    a = make_stream("a")
    for name in ("g1", "g2"):
        a.add(GroupId(name), b"p")
    taken, kept = a.lease(2, 0)
    with LeaseKeeper(a) as keeper:
        keeper.hold(taken)
        keeper.hold(kept)
        client.xclaim(a.key, "rollout", "thief", 0, [taken.entry_id])
        deadline = time.monotonic() + 3
        while not keeper.lost(taken) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert (keeper.lost(taken), keeper.lost(kept), keeper.count) == (True, False, 1)


def test_keeper_goes_on_after_a_renewal_that_failed(make_stream: MakeStream, monkeypatch: pytest.MonkeyPatch):
    a, b = make_stream("a"), make_stream("b")
    a.add(GroupId("g1"), b"p")
    (lease,) = a.lease(1, 0)
    outcomes, renew = iter(["down"]), a.renew

    def fail_once(leases: Sequence[Lease]) -> list[Lease]:
        if next(outcomes, None):
            raise RedisUnreachable("gone", "wait")
        return renew(leases)

    monkeypatch.setattr(a, "renew", fail_once)
    with LeaseKeeper(a) as keeper:
        keeper.hold(lease)
        assert b.lease(1, 0.8) == []
        assert not keeper.lost(lease)
    assert next(outcomes, None) is None
