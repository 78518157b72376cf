from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tersely.queue import Lease, QuarantineReader, connect
from tersely.queue.embedded import EmbeddedServer
from tersely.rollout.engines.base import EngineSettings
from tersely.testing.engines import LABEL, group
from tersely.testing.modules import load_module
from tersely.types import GroupId
from tersely.v1 import group_pb2

shared = load_module(Path(__file__).with_name("ring.py"))
FakeSource, Ring, OLD = shared.FakeSource, shared.Ring, shared.OLD

MakeRing = Callable[..., Any]


def test_a_group_is_generated_by_the_weights_it_requires_and_handed_on(make_ring: MakeRing) -> None:
    ring = make_ring(FakeSource(LABEL, LABEL))
    asked = group([1, 2, 3], exact=True)
    ring.add(asked)
    ring.run(until=ring.done(1))
    result = ring.results()["g"]
    assert result.prompt == asked
    assert result.rollout_node_id == "worker"
    assert [c.sample_index for c in result.completions] == [0, 1, 2, 3]
    for completion in result.completions:
        assert completion.version_spans[0].weights == LABEL.to_proto()
        assert completion.text == " ".join(map(str, completion.token_ids))
    assert ring.stream.depth().total == 0
    assert ring.reports[-1]["groups_finished"] == 1
    assert ring.reports[-1]["policy_version"] == 3


def test_no_lease_is_taken_before_a_version_is_held(make_ring: MakeRing) -> None:
    ring = make_ring(FakeSource(None, LABEL))
    ring.add(group([1, 2, 3]))
    ring.run(until=lambda: len(ring.reports) > 5)
    assert {report["state"] for report in ring.reports} == {"starting", "draining"}
    assert ring.stream.depth().leased == 0
    assert ring.stream.depth().waiting == 1


def test_older_required_weights_are_fetched_and_then_the_newest_are_held_again(make_ring: MakeRing) -> None:
    ring = make_ring(FakeSource(LABEL, LABEL, OLD))
    pinned = group([1, 2], name="pinned")
    pinned.required_weights.CopyFrom(OLD.to_proto())
    ring.add(pinned, group([3, 4], name="free"))
    ring.run(until=ring.done(2))
    labels = {name: r.completions[0].version_spans[0].weights.policy_version for name, r in ring.results().items()}
    assert labels == {"pinned": 1, "free": 3}
    assert ring.source.fetched == [LABEL, OLD, LABEL]


def test_groups_without_required_order_share_a_batch_and_exact_ones_do_not(make_ring: MakeRing) -> None:
    ring = make_ring(FakeSource(LABEL, LABEL))
    ring.add(
        *[group([1], name=f"e{n}") for n in range(3)],
        group([1], name="t0", exact=True),
        group([1], name="t1", exact=True),
    )
    ring.run(until=ring.done(5))
    assert ring.engine.admitted == [["e0"], ["e0", "e1"], ["e0", "e1", "e2"], ["t0"], ["t1"]]


def test_weights_that_are_gone_send_the_group_back_and_then_strike_it(make_ring: MakeRing) -> None:
    ring = make_ring(FakeSource(LABEL, LABEL), max_strikes=1)
    pinned = group([1, 2], name="pinned")
    pinned.required_weights.CopyFrom(OLD.to_proto())
    ring.add(pinned)
    reader = QuarantineReader(ring.client, ring.keys.quarantine)
    found: list[group_pb2.QuarantinedGroup] = []
    ring.run(until=lambda: bool(found.extend(reader.read()) or found))
    assert (found[0].group_id, found[0].error_kind, found[0].strikes) == ("pinned", "weights_unavailable", 1)
    assert ring.done(0)()
    assert ring.results() == {}


def test_a_failing_group_is_struck_until_quarantine_and_its_companions_are_generated(make_ring: MakeRing) -> None:
    ring = make_ring(FakeSource(LABEL, LABEL))
    ring.engine.failing = "bad"
    ring.add(group([1], name="good1"), group([1], name="bad"), group([1], name="good2"))
    reader = QuarantineReader(ring.client, ring.keys.quarantine)
    found: list[group_pb2.QuarantinedGroup] = []
    ring.run(until=lambda: bool(found.extend(reader.read()) or found))
    assert (found[0].group_id, found[0].strikes, found[0].error_kind) == ("bad", 3, "engine_failed")
    assert "out of memory" in found[0].error_message
    assert set(ring.results()) == {"good1", "good2"}
    assert "out of memory" in ring.reports[-1]["last_error"]


def test_an_entry_that_is_no_group_is_struck(make_ring: MakeRing) -> None:
    ring = make_ring(FakeSource(LABEL, LABEL), max_strikes=1)
    ring.stream.add(GroupId("junk"), b"\xff\xff")
    ring.add(group([1], name="good"))
    ring.run(until=ring.done(1))
    assert set(ring.results()) == {"good"}
    assert ring.stream.depth().total == 0


def test_a_drain_abandons_generation_and_gives_leases_back_without_a_strike(make_ring: MakeRing) -> None:
    ring = make_ring(FakeSource(LABEL, LABEL))
    ring.engine.endless = True
    ring.add(group([1], name="a"), group([1], name="b"))
    ring.run(until=lambda: ring.stream.depth().leased == 2 and ring.reports[-1]["state"] == "generating")
    assert ring.error is None
    assert ring.results() == {}
    given_back = ring.consumer("other").lease(10, 0)
    assert sorted((lease.group_id, lease.strikes, lease.expired_leases) for lease in given_back) == [
        ("a", 0, 0),
        ("b", 0, 0),
    ]


def test_a_lease_lost_to_another_worker_is_dropped_and_counted(
    make_ring: MakeRing, monkeypatch: pytest.MonkeyPatch
) -> None:
    ring = make_ring(FakeSource(LABEL, LABEL))

    def lost(finished: list[tuple[Lease, bytes]], to_key: str) -> list[Lease]:
        return [lease for lease, _ in finished]

    monkeypatch.setattr(ring.stream, "forward_many", lost)
    ring.add(group([1], name="a"))
    ring.run(until=lambda: ring.leases.lost_count == 1)
    assert ring.leases.lost_count == 1
    assert ring.worker.groups_finished == 0
    assert ring.results() == {}


def steal(ring: Any, index: int) -> None:
    entry = ring.client.xpending_range(ring.keys.prompts, "rollout", "-", "+", 10)[index]
    ring.client.xclaim(ring.keys.prompts, "rollout", "thief", 0, [entry["message_id"]], justid=True)


def test_generation_stops_when_all_its_leases_have_gone_to_others(make_ring: MakeRing) -> None:
    ring = make_ring(FakeSource(LABEL, LABEL), lease_seconds=3.0)
    ring.engine.endless = True
    ring.add(group([1], name="a"))
    thief = ring.consumer("thief", lease_seconds=3.0)

    def stolen() -> bool:
        if ring.stream.depth().leased == 1 and ring.leases.lost_count == 0:
            steal(ring, 0)
        return ring.leases.lost_count == 1

    ring.run(until=stolen)
    assert ring.leases.lost_count == 1
    assert [lease.group_id for lease in thief.pending_of_consumer()] == ["a"]


def test_a_server_that_is_gone_ends_the_stay_after_the_patience(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path / "valkey") as server:
        client = connect(server.url, timeout_seconds=0.5)
        ring = Ring(client, tmp_path, FakeSource(LABEL, LABEL))

        def stop_server() -> bool:
            if ring.reports and ring.reports[-1]["state"] == "waiting":
                server.stop()
            return ring.error is not None

        ring.run(until=stop_server)
    client.close()
    assert ring.error is not None
    assert ring.error.kind == "redis_unreachable"


def test_a_long_group_does_not_hold_up_short_ones_that_come_later(make_ring: MakeRing) -> None:
    ring = make_ring(FakeSource(LABEL, LABEL))
    ring.engine._step_seconds = 0.002
    long = group([1], name="long", limit=100_000, stop=())
    long.target_tokens = 5000
    ring.add(long)
    ring.play(
        (lambda: ring.admitted() == ["long"], lambda: ring.add(group([1], name="a"), group([1], name="b"))),
        (ring.done(2), lambda: ring.add(group([1], name="c"))),
        (ring.done(3), lambda: None),
    )
    assert set(ring.results()) == {"a", "b", "c"}
    assert ring.engine.admitted[1:] == [["long", "a"], ["long", "a", "b"], ["long", "c"]]


def test_no_more_is_leased_than_has_room(make_ring: MakeRing) -> None:
    ring = make_ring(FakeSource(LABEL, LABEL))
    ring.engine.endless = True
    ring.add(*[group([1], name=f"g{n}") for n in range(6)])
    seen: list[int] = []
    ring.run(until=lambda: bool(seen.append(ring.leased()) or seen.count(3) > 20))  # type: ignore[func-returns-value]
    assert max(seen) == 3
    assert ring.stream.depth().total == 6


def test_a_lost_lease_ends_only_its_group(make_ring: MakeRing) -> None:
    ring = make_ring(FakeSource(LABEL, LABEL), lease_seconds=3.0)
    ring.engine.endless = True
    ring.add(group([1], name="a"), group([1], name="b"))
    ring.play(
        (lambda: ring.admitted() == ["a", "b"], lambda: steal(ring, 0)),
        (lambda: ring.leases.lost_count == 1, lambda: setattr(ring.engine, "endless", False)),
        (ring.done(1), lambda: None),
    )
    assert set(ring.results()) == {"b"}


def test_two_copies_of_a_group_are_generated_one_after_the_other(make_ring: MakeRing) -> None:
    ring = make_ring(FakeSource(LABEL, LABEL))
    ring.add(group([1], name="a"), group([1], name="a"))
    ring.run(until=ring.done(2))
    assert ring.engine.admitted == [["a"], ["a"]]
    assert ring.worker.groups_finished == 2


def test_a_worker_that_fails_every_group_ends_before_it_has_struck_them_all(make_ring: MakeRing) -> None:
    ring = make_ring(FakeSource(LABEL, LABEL), max_strikes=1)
    ring.engine.broken = True
    ring.add(*[group([1], name=f"g{n}") for n in range(6)])
    ring.run(until=lambda: ring.error is not None)
    assert ring.error is not None
    assert ring.error.kind == "engine_failed"
    assert ring.client.xlen(ring.keys.quarantine) == 3
    assert ring.stream.depth().waiting == 3


def test_a_group_that_finishes_between_shows_that_the_worker_is_whole(make_ring: MakeRing) -> None:
    ring = make_ring(FakeSource(LABEL, LABEL), max_strikes=1)
    ring.engine.failing = "bad"
    for n in range(4):
        ring.add(group([1], name=f"bad{n}", exact=True), group([1], name=f"good{n}", exact=True))
    ring.run(until=ring.done(4))
    assert ring.error is None
    assert set(ring.results()) == {f"good{n}" for n in range(4)}


def test_after_long_prompts_as_many_short_ones_run_together_as_before(make_ring: MakeRing) -> None:
    ring = make_ring(FakeSource(LABEL, LABEL))
    ring.engine._settings = EngineSettings(batch_sequences=16, batch_tokens=1000)
    shape = {"size": 2, "limit": 30}
    ring.add(
        *[group([1] * 40, name=f"s{n}", **shape) for n in range(8)],
        *[group([1] * 500, name=f"l{n}", **shape) for n in range(2)],
        *[group([1] * 40, name=f"t{n}", **shape) for n in range(60)],
    )
    ring.run(until=ring.done(70))
    assert max(len(names) for names in ring.engine.admitted if names[-1].startswith("t")) >= 8


def test_a_worker_that_generates_looks_for_groups_a_few_times_a_second(
    make_ring: MakeRing, monkeypatch: pytest.MonkeyPatch
) -> None:
    ring = make_ring(FakeSource(LABEL, LABEL))
    ring.engine.endless = True
    ring.add(group([1], name="a"))
    looks: list[float] = []
    take = ring.leases.take

    def counted(count: int, block_seconds: float, *, patient: bool) -> list[Lease] | None:
        if not patient:
            looks.append(time.monotonic())
        return take(count, block_seconds, patient=patient)  # type: ignore[no-any-return]

    monkeypatch.setattr(ring.leases, "take", counted)
    ring.run(until=lambda: len(looks) >= 3)
    assert min(later - earlier for earlier, later in itertools.pairwise(looks)) >= 0.25
