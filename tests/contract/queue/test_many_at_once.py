"""Groups that go through a stream together, in as few round trips as one."""

from __future__ import annotations

import time
from collections.abc import Callable

import redis

from tersely.queue import WorkStream
from tersely.types import GroupId

MakeStream = Callable[..., WorkStream]
EXPIRED = 0.35
G1, G2, G3 = GroupId("g1"), GroupId("g2"), GroupId("g3")


def test_groups_added_together_keep_their_order(make_stream: MakeStream):
    stream = make_stream()
    stream.add_many([(G1, b"a"), (G2, b"b")])
    stream.add_many([])
    stream.add_many([(G3, b"c")])
    assert [(lease.group_id, lease.payload) for lease in stream.lease(5, 0)] == [(G1, b"a"), (G2, b"b"), (G3, b"c")]


def test_groups_forwarded_together_leave_one_stream_and_enter_the_other(make_stream: MakeStream, client: redis.Redis):
    stream = make_stream()
    stream.add_many([(G1, b"a"), (G2, b"b"), (G3, b"c")])
    first, second, third = stream.lease(3, 0)
    assert stream.forward_many([(first, b"A"), (third, b"C")], "next") == []
    assert [fields[b"p"] for _, fields in client.xrange("next")] == [b"A", b"C"]
    assert stream.pending_of_consumer()[0].group_id == second.group_id
    assert stream.depth().total == 1


def test_lost_leases_are_left_out_and_the_others_go_on(make_stream: MakeStream, client: redis.Redis):
    a, b = make_stream("a"), make_stream("b")
    a.add_many([(G1, b"a"), (G2, b"b")])
    lost, kept = a.lease(2, 0)
    time.sleep(EXPIRED)
    a.renew([kept])
    assert [lease.group_id for lease in b.lease(1, 0)] == [G1]
    assert a.forward_many([(lost, b"A"), (kept, b"B")], "next") == [lost]
    assert [fields[b"g"] for _, fields in client.xrange("next")] == [b"g2"]
    assert a.forward_many([(lost, b"A")], "next") == [lost]


def test_expired_leases_are_found_even_while_there_is_always_something_new(make_stream: MakeStream):
    a, b = make_stream("a"), make_stream("b")
    a.add(G1, b"p")
    assert len(a.lease(1, 0)) == 1
    deadline = time.monotonic() + 10
    seen: list[str] = []
    while G1 not in seen:
        assert time.monotonic() < deadline
        b.add(G2, b"p")
        for lease in b.lease(1, 0):
            seen.append(lease.group_id)
            b.ack([lease])
