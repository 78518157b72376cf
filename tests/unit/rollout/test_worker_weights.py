"""When a worker changes its weights, and what it does not do meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tersely.errors import EngineFailed
from tersely.testing.engines import LABEL, group
from tersely.testing.modules import load_module
from tersely.v1 import checkpoint_pb2, group_pb2

shared = load_module(Path(__file__).with_name("ring.py"))
FakeSource, OLD, NEXT, LATER = shared.FakeSource, shared.OLD, shared.NEXT, shared.LATER
MakeRing = Callable[..., Any]


def pinned(name: str, label: Any, exact: bool = False) -> group_pb2.PromptGroup:
    made = group([1, 2], name=name, exact=exact)
    made.required_weights.CopyFrom(label.to_proto())
    return made


def announce(ring: Any, label: Any) -> Callable[[], None]:
    def do() -> None:
        ring.source.newest = label

    return do


def let_it_end(ring: Any) -> Callable[[], None]:
    def do() -> None:
        ring.engine.endless = False

    return do


def add(ring: Any, *groups: group_pb2.PromptGroup) -> Callable[[], None]:
    return lambda: ring.add(*groups)


def nothing() -> None:
    return None


def after(seconds: float) -> Callable[[], bool]:
    began: list[float] = []

    def over() -> bool:
        began.append(time.monotonic())
        return began[-1] - began[0] > seconds

    return over


def test_new_weights_come_while_groups_run_and_those_are_finished_by_the_old_ones(make_ring: MakeRing) -> None:
    ring = make_ring(FakeSource(LABEL, LABEL, NEXT), max_staleness=1)
    ring.engine.endless = True
    ring.add(group([1], name="a"))
    ring.play(
        (lambda: ring.admitted() == ["a"], announce(ring, NEXT)),
        (lambda: NEXT in ring.source.fetched, add(ring, group([1], name="b"))),
        (after(0.1), let_it_end(ring)),
        (ring.done(2), nothing),
    )
    assert ring.engine.admitted == [["a"], ["b"]]
    assert ring.spans() == {"a": {(3,)}, "b": {(4,)}}


def test_in_flight_the_running_group_goes_on_under_the_new_weights(make_ring: MakeRing) -> None:
    ring = make_ring(FakeSource(LABEL, LABEL, NEXT), swap="inflight", max_staleness=1)
    long = group([1], name="a", limit=100_000, stop=())
    long.target_tokens = 300
    ring.add(long)
    ring.engine._step_seconds = 0.001
    ring.play(
        (lambda: ring.admitted() == ["a"], announce(ring, NEXT)),
        (lambda: ring.worker._holder.label == NEXT, nothing),
        (ring.done(1), nothing),
    )
    assert (3, 4) in ring.spans()["a"]
    assert ring.reports[-1]["swap_pause_seconds"] > 0


def test_in_flight_a_group_that_requires_its_weights_is_finished_by_them(make_ring: MakeRing) -> None:
    ring = make_ring(FakeSource(LABEL, LABEL, NEXT), swap="inflight", max_staleness=1)
    ring.engine.endless = True
    ring.add(pinned("a", LABEL))
    ring.play(
        (lambda: ring.admitted() == ["a"], announce(ring, NEXT)),
        (lambda: NEXT in ring.source.fetched, add(ring, group([1], name="b"))),
        (after(0.1), let_it_end(ring)),
        (ring.done(2), nothing),
    )
    assert ring.spans() == {"a": {(3,)}, "b": {(4,)}}


def test_a_joiner_leases_nothing_before_it_holds_the_current_version(make_ring: MakeRing) -> None:
    ring = make_ring(FakeSource(LABEL, LABEL, NEXT), max_staleness=5)
    ring.source.withheld = {LABEL, NEXT}
    ring.add(group([1], name="a"))
    leased = []
    ring.play(
        (after(0.05), announce(ring, NEXT)),
        (lambda: True, lambda: ring.source.withheld.remove(LABEL)),
        (lambda: ring.worker._holder.label == LABEL, nothing),
        (after(0.2), lambda: leased.append(ring.leased())),
        (lambda: True, lambda: ring.source.withheld.clear()),
        (ring.done(1), nothing),
    )
    assert leased == [0]
    assert ring.spans() == {"a": {(4,)}}


def test_a_worker_too_far_behind_leases_nothing_until_it_has_caught_up(make_ring: MakeRing) -> None:
    ring = make_ring(FakeSource(LABEL, LABEL, NEXT, LATER), max_staleness=1)
    ring.source.withheld = {NEXT, LATER}
    leased = []
    ring.play(
        (lambda: ring.worker._holder.label == LABEL, announce(ring, NEXT)),
        (lambda: True, add(ring, group([1], name="one behind"))),
        (ring.done(1), announce(ring, LATER)),
        (after(0.7), add(ring, group([1], name="two behind"))),
        (after(0.3), lambda: leased.append(ring.leased())),
        (lambda: True, lambda: ring.source.withheld.clear()),
        (ring.done(2), nothing),
    )
    assert leased == [0]
    assert ring.spans() == {"one behind": {(3,)}, "two behind": {(5,)}}


def test_weights_that_the_engine_does_not_sample_from_end_the_worker_before_it_generates(make_ring: MakeRing) -> None:
    ring = make_ring(FakeSource(LABEL, LABEL, NEXT))
    ring.engine.models = True
    flat = checkpoint_pb2.Probe(token_ids=[1, 2, 3], logprobs=[-3.912, -3.912])  # a vocabulary of 50
    ring.source.probes = {LABEL: flat, NEXT: checkpoint_pb2.Probe(token_ids=[1, 2, 3], logprobs=[-3.912, -3.9])}
    ring.play(
        (lambda: ring.worker._holder.label == LABEL, add(ring, group([1], name="a"))),
        (ring.done(1), announce(ring, NEXT)),
        (lambda: True, add(ring, group([1], name="b"))),
        (lambda: False, nothing),
    )
    assert ring.error.kind == "weights_not_applied"
    assert ring.spans() == {"a": {(3,)}}
    assert ring.stream.depth().waiting == 1


def test_a_probe_with_another_number_of_tokens_proves_nothing(make_ring: MakeRing) -> None:
    ring = make_ring(FakeSource(LABEL, LABEL))
    ring.engine.models = True
    ring.source.probes = {LABEL: checkpoint_pb2.Probe(token_ids=[1, 2, 3], logprobs=[-3.912])}
    ring.play((lambda: False, nothing))
    assert ring.error.kind == "weights_not_applied"


def test_weights_without_a_probe_are_counted_as_not_proved(make_ring: MakeRing) -> None:
    ring = make_ring(FakeSource(LABEL, LABEL))
    ring.engine.models = True
    ring.add(group([1], name="a"))
    ring.play((ring.done(1), nothing))
    assert ring.worker._holder.unproved == 1
    assert "1 versions held that no probe proves" in ring.reports[-1]["last_error"]


def test_an_engine_that_can_not_score_the_probe_generates_nothing(
    make_ring: MakeRing, monkeypatch: pytest.MonkeyPatch
) -> None:
    ring = make_ring(FakeSource(LABEL, LABEL, OLD))
    ring.engine.models = True
    ring.source.probes = {OLD: checkpoint_pb2.Probe(token_ids=[1, 2, 3], logprobs=[-3.912, -3.912])}

    def broken(*_: object) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(ring.engine, "score", broken)
    ring.add(pinned("a", OLD))
    ring.play((lambda: False, nothing))
    assert ring.error.kind == "weights_not_applied"
    assert "no such kernel" in str(ring.error)
    assert ring.stream.depth().waiting == 1


def test_required_weights_that_do_not_fit_strike_the_group_and_the_worker_goes_on(make_ring: MakeRing) -> None:
    ring = make_ring(FakeSource(LABEL, LABEL, OLD), max_strikes=2)
    ring.engine.unfit = OLD
    ring.add(pinned("bad", OLD))
    quarantine = ring.keys.quarantine
    ring.play(
        (lambda: ring.client.xlen(quarantine) == 1, add(ring, group([1], name="good"))),
        (ring.done(1), nothing),
    )
    assert ring.spans() == {"good": {(3,)}}


def test_a_swap_that_breaks_in_an_unforeseen_way_is_tried_again_with_the_group(make_ring: MakeRing) -> None:
    ring = make_ring(FakeSource(LABEL, LABEL, OLD))
    ring.engine.swap_failures = 1
    ring.add(pinned("a", OLD))
    ring.play((ring.done(1), nothing))
    assert ring.spans() == {"a": {(1,)}}
    assert ring.source.fetched[:3] == [LABEL, OLD, OLD]


def test_a_fetch_that_breaks_in_an_unforeseen_way_ends_the_worker_with_its_reason(
    make_ring: MakeRing, monkeypatch: pytest.MonkeyPatch
) -> None:
    ring = make_ring(FakeSource(LABEL, LABEL))

    def broken(*_: object) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(ring.source, "fetch", broken)
    with pytest.raises(EngineFailed, match="MemoryError: no room"), ring.fetcher:
        ring.worker.run()
