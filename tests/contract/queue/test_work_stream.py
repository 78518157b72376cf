"""What every server must do for a work stream."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable

import pytest
import redis

from tersely.errors import LeaseLost
from tersely.queue import QuarantineReader, RunKeys, StreamDepth, WorkStream
from tersely.types import GroupId
from tersely.v1 import group_pb2

G1, G2, G3 = GroupId("g1"), GroupId("g2"), GroupId("g3")
EXPIRED = 0.35
MakeStream = Callable[..., WorkStream]


def one(stream: WorkStream):
    (lease,) = stream.lease(1, 1.0)
    return lease


def test_added_groups_are_leased_once_in_order(make_stream: MakeStream):
    a, b = make_stream("a"), make_stream("b")
    for group_id in (G1, G2, G3):
        a.add(group_id, b"payload of " + group_id.encode())
    first, second = a.lease(2, 0), b.lease(2, 0)
    assert [lease.group_id for lease in first] == [G1, G2]
    assert [(lease.group_id, lease.payload) for lease in second] == [(G3, b"payload of g3")]
    assert [(lease.strikes, lease.expired_leases) for lease in first + second] == [(0, 0)] * 3
    assert a.lease(1, 0) == []


def test_payload_bytes_are_kept(make_stream: MakeStream):
    stream, payload = make_stream(), bytes(range(256)) * 40
    stream.add(G1, payload)
    assert one(stream).payload == payload


def test_create_twice_keeps_what_is_there(make_stream: MakeStream):
    stream = make_stream()
    stream.add(G1, b"p")
    stream.create()
    assert one(stream).group_id == G1


def test_entries_added_before_the_group_exists_are_leased(client: redis.Redis, keys: RunKeys, make_stream: MakeStream):
    early = WorkStream(client, keys.prompts, "rollout", "early", lease_seconds=1, quarantine_key=keys.quarantine)
    early.add(G1, b"p")
    assert one(make_stream()).group_id == G1


def test_lease_waits_for_work_and_gives_up_in_time(make_stream: MakeStream):
    stream = make_stream()
    began = time.monotonic()
    assert stream.lease(1, 0.2) == []
    assert 0.15 < time.monotonic() - began < 1.0
    adder = threading.Timer(0.1, lambda: stream.add(G1, b"p"))
    adder.start()
    began = time.monotonic()
    (lease,) = stream.lease(1, 5.0)
    adder.join()
    assert lease.group_id == G1
    assert time.monotonic() - began < 2.0


def test_waiting_longer_than_the_socket_timeout_is_no_error(server_url: str, keys: RunKeys, client: redis.Redis):
    from tersely.queue import connect

    with connect(server_url, timeout_seconds=0.3) as impatient:
        stream = WorkStream(impatient, keys.prompts, "rollout", "a", lease_seconds=60, quarantine_key=keys.quarantine)
        stream.create()
        assert stream.lease(1, 0.7) == []


def test_expired_lease_goes_to_another_and_is_counted(make_stream: MakeStream):
    a, b = make_stream("a"), make_stream("b")
    a.add(G1, b"p")
    one(a)
    assert b.lease(1, 0) == []
    (lease,) = b.lease(1, 5.0)
    assert (lease.group_id, lease.expired_leases, lease.strikes) == (G1, 1, 0)


def test_expired_lease_comes_before_new_work(make_stream: MakeStream):
    a, b = make_stream("a"), make_stream("b")
    a.add(G1, b"p")
    one(a)
    a.add(G2, b"p")
    time.sleep(EXPIRED)
    assert [lease.group_id for lease in b.lease(2, 0)] == [G1, G2]


def test_expired_lease_is_found_behind_many_live_ones(make_stream: MakeStream):
    a, b, c = make_stream("a"), make_stream("b"), make_stream("c")
    for n in range(31):
        a.add(GroupId(f"g{n}"), b"p")
    live, dead = a.lease(30, 0), one(b)
    time.sleep(EXPIRED)
    a.renew(live)
    assert [lease.group_id for lease in c.lease(1, 0)] == [dead.group_id]


def test_renewed_lease_stays_and_does_not_count_as_expired(make_stream: MakeStream):
    a, b = make_stream("a"), make_stream("b")
    a.add(G1, b"p")
    lease = one(a)
    for _ in range(4):
        time.sleep(0.15)
        assert a.renew([lease]) == [lease]
    assert b.lease(1, 0) == []
    time.sleep(EXPIRED)
    assert one(b).expired_leases == 1


def test_renew_returns_only_what_is_still_held(make_stream: MakeStream):
    a, b = make_stream("a"), make_stream("b")
    for group_id in (G1, G2, G3):
        a.add(group_id, b"p")
    lost, kept, done = a.lease(3, 0)
    a.ack([done])
    time.sleep(EXPIRED)
    b_has = one(b)
    assert b_has.entry_id == lost.entry_id
    assert a.renew([lost, kept, done]) == [kept]
    assert b.renew([b_has]) == [b_has]
    assert a.renew([]) == []


def test_forward_moves_the_group_in_one_step(make_stream: MakeStream, keys: RunKeys):
    a, scorer = make_stream("a"), make_stream("s", key=keys.completions, group="scorer")
    a.add(G1, b"prompt")
    a.fail(one(a), "engine_failed", "once")
    a.forward(one(a), keys.completions, b"completion")
    assert a.depth() == StreamDepth(0, 0)
    lease = one(scorer)
    assert (lease.group_id, lease.payload, lease.strikes, lease.expired_leases) == (G1, b"completion", 0, 0)


def test_forward_after_losing_the_lease_is_refused(make_stream: MakeStream, keys: RunKeys, client: redis.Redis):
    a, b = make_stream("a"), make_stream("b")
    a.add(G1, b"p")
    lost = one(a)
    time.sleep(EXPIRED)
    held = one(b)
    with pytest.raises(LeaseLost, match="g1"):
        a.forward(lost, keys.completions, b"late")
    b.forward(held, keys.completions, b"good")
    with pytest.raises(LeaseLost):
        b.forward(held, keys.completions, b"again")
    assert [fields[b"p"] for _, fields in client.xrange(keys.completions)] == [b"good"]


def test_two_consumers_never_both_forward_one_entry(make_stream: MakeStream, keys: RunKeys, client: redis.Redis):
    a, b = make_stream("a"), make_stream("b")
    names = [GroupId(f"g{n}") for n in range(20)]
    for name in names:
        a.add(name, b"p")
    first = a.lease(20, 0)
    time.sleep(EXPIRED)
    second = b.lease(20, 0)
    assert {lease.entry_id for lease in first} == {lease.entry_id for lease in second}
    refused: Counter[str] = Counter()
    barrier = threading.Barrier(2)

    def forward_all(stream: WorkStream, leases: list, name: str) -> None:
        barrier.wait()
        for lease in leases:
            try:
                stream.forward(lease, keys.completions, name.encode())
            except LeaseLost:
                refused[name] += 1

    threads = [threading.Thread(target=forward_all, args=args) for args in ((a, first, "a"), (b, second, "b"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sent = [(fields[b"g"].decode(), fields[b"p"]) for _, fields in client.xrange(keys.completions)]
    assert sorted(sent) == sorted((name, b"b") for name in names)
    assert refused == {"a": 20}


def test_given_back_group_is_free_at_once_without_strike(make_stream: MakeStream):
    a, b = make_stream("a"), make_stream("b")
    a.add(G1, b"p")
    a.give_back(one(a))
    lease = one(b)
    assert (lease.group_id, lease.payload, lease.strikes, lease.expired_leases) == (G1, b"p", 0, 0)
    assert b.depth() == StreamDepth(0, 1)


def test_expired_leases_and_strikes_are_kept_when_given_back(make_stream: MakeStream):
    a, b = make_stream("a"), make_stream("b")
    a.add(G1, b"p")
    a.fail(one(a), "engine_failed", "boom")
    one(a)
    time.sleep(EXPIRED)
    b.give_back(one(b))
    lease = one(a)
    assert (lease.strikes, lease.expired_leases) == (1, 1)
    a.fail(lease, "engine_failed", "boom")
    lease = one(a)
    assert (lease.strikes, lease.expired_leases) == (2, 1)


def test_third_strike_quarantines_with_the_last_error(make_stream: MakeStream, keys: RunKeys, client: redis.Redis):
    stream = make_stream()
    payload = group_pb2.PromptGroup(group_id=G1, issue_number=7).SerializeToString()
    stream.add(G1, payload)
    assert [stream.fail(one(stream), "engine_failed", f"boom {n}") for n in range(3)] == [False, False, True]
    assert stream.depth() == StreamDepth(0, 0)
    reader = QuarantineReader(client, keys.quarantine)
    (found,) = reader.read()
    assert found == group_pb2.QuarantinedGroup(
        group_id=G1,
        issue_number=7,
        stage="prompts",
        entry=payload,
        error_kind="engine_failed",
        error_message="boom 2",
        strikes=3,
    )
    assert reader.read() == []


def test_quarantine_names_stage_and_issue_of_each_stream(make_stream: MakeStream, keys: RunKeys, client: redis.Redis):
    prompt = group_pb2.PromptGroup(group_id=G1, issue_number=41)
    completion = group_pb2.CompletionGroup(prompt=prompt)
    for key, message in (
        (keys.completions, completion),
        (keys.scored, group_pb2.ScoredGroup(group=completion)),
        (keys.prompts, None),
    ):
        stream = make_stream(key=key, max_strikes=1)
        stream.add(G1, b"\xff not a message" if message is None else message.SerializeToString())
        assert stream.fail(one(stream), "reward_failed", "boom")
    found = QuarantineReader(client, keys.quarantine).read()
    assert [(q.stage, q.issue_number) for q in found] == [("completions", 41), ("scored", 41), ("prompts", 0)]


def test_failure_and_give_back_without_lease_change_nothing(make_stream: MakeStream, keys: RunKeys):
    a, b = make_stream("a"), make_stream("b", max_strikes=1)
    a.add(G1, b"p")
    lost = one(a)
    time.sleep(EXPIRED)
    held = one(b)
    a.give_back(lost)
    assert a.fail(lost, "engine_failed", "late") is False
    assert b.depth() == StreamDepth(0, 1)
    assert b.renew([held]) == [held]


def test_group_that_kills_its_workers_is_quarantined(make_stream: MakeStream, keys: RunKeys, client: redis.Redis):
    stream = make_stream("b", lease_seconds=0.05, max_expired_leases=3)
    stream.add(G1, b"p")
    seen = []
    for _ in range(3):
        seen.append(one(stream).expired_leases)
        time.sleep(0.08)
    assert stream.lease(1, 0) == []
    assert seen == [0, 1, 2]
    (found,) = QuarantineReader(client, keys.quarantine).read()
    assert (found.group_id, found.error_kind, found.expired_leases, found.strikes) == (G1, "suspected_poison", 3, 0)
    assert stream.depth() == StreamDepth(0, 0)


def test_ten_expired_leases_is_the_default_limit(make_stream: MakeStream, keys: RunKeys, client: redis.Redis):
    stream = make_stream(lease_seconds=0.02)
    stream.add(G1, b"p")
    for n in range(10):
        assert one(stream).expired_leases == n
        time.sleep(0.03)
    assert stream.lease(1, 0) == []
    assert len(QuarantineReader(client, keys.quarantine).read()) == 1


def test_foreign_entry_is_quarantined_and_does_not_stop_the_stream(
    make_stream: MakeStream, keys: RunKeys, client: redis.Redis
):
    stream = make_stream()
    client.xadd(keys.prompts, {"what": "is this"})
    stream.add(G1, b"p")
    assert [lease.group_id for lease in stream.lease(5, 0)] == [G1]
    assert [q.error_kind for q in QuarantineReader(client, keys.quarantine).read()] == ["malformed_entry"]


def test_quarantine_is_read_on_from_where_it_stopped(make_stream: MakeStream, keys: RunKeys, client: redis.Redis):
    stream = make_stream(max_strikes=1)
    for n in range(130):
        stream.add(GroupId(f"g{n}"), b"p")
    for lease in stream.lease(130, 0):
        stream.fail(lease, "k", "m")
    reader = QuarantineReader(client, keys.quarantine)
    assert [q.group_id for q in reader.read()] == [f"g{n}" for n in range(130)]
    stream.add(G1, b"p")
    stream.fail(one(stream), "k", "m")
    assert [q.group_id for q in QuarantineReader(client, keys.quarantine, reader.after).read()] == [G1]


def test_restarted_consumer_finds_what_it_held(make_stream: MakeStream, keys: RunKeys):
    before, other = make_stream("trainer"), make_stream("other")
    for group_id in (G1, G2):
        before.add(group_id, b"p")
    leased, others = one(before), one(other)
    after = make_stream("trainer")
    (found,) = after.pending_of_consumer()
    assert (found.entry_id, found.group_id, found.expired_leases) == (leased.entry_id, G1, 1)
    after.forward(found, keys.completions, b"c")
    assert after.pending_of_consumer() == []
    assert other.renew([others]) == [others]


def test_acked_entries_are_gone(make_stream: MakeStream):
    stream = make_stream()
    for group_id in (G1, G2, G3):
        stream.add(group_id, b"p")
    stream.ack(stream.lease(2, 0))
    stream.ack([])
    assert stream.depth() == StreamDepth(waiting=1, leased=0)
    assert stream.depth().total == 1


def test_depth_tells_waiting_from_leased(make_stream: MakeStream):
    stream = make_stream()
    for group_id in (G1, G2, G3):
        stream.add(group_id, b"p")
    stream.lease(1, 0)
    assert stream.depth() == StreamDepth(waiting=2, leased=1)


def test_wiped_server_is_met_by_starting_anew(make_stream: MakeStream, keys: RunKeys, client: redis.Redis):
    stream = make_stream()
    stream.add(G1, b"p")
    lease = one(stream)
    client.flushall()
    assert stream.renew([lease]) == []
    client.flushall()
    with pytest.raises(LeaseLost):
        stream.forward(lease, keys.completions, b"c")
    client.flushall()
    assert stream.fail(lease, "k", "m") is False
    client.flushall()
    stream.give_back(lease)
    stream.ack([lease])
    client.flushall()
    assert stream.depth() == StreamDepth(0, 0)
    client.flushall()
    assert stream.pending_of_consumer() == []
    client.flushall()
    stream.add(G2, b"p")
    assert one(stream).group_id == G2
    assert client.exists(keys.completions) == 0


def test_server_wiped_while_waiting_for_work(make_stream: MakeStream, client: redis.Redis):
    stream = make_stream(lease_seconds=10)

    def wipe_and_add() -> None:
        client.flushall()
        stream.add(G1, b"p")

    timer = threading.Timer(0.15, wipe_and_add)
    timer.start()
    assert [lease.group_id for lease in stream.lease(1, 3.0)] == [G1]
    timer.join()
