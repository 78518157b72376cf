"""Held-out prompts beside training groups: they come second, and they come."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tersely.errors import RedisUnreachable
from tersely.testing.engines import LABEL, group
from tersely.testing.modules import load_module
from tersely.v1 import group_pb2

shared = load_module(Path(__file__).with_name("ring.py"))
FakeSource, NEXT = shared.FakeSource, shared.NEXT
MakeRing = Callable[..., Any]


def held_out(name: str, label: Any = LABEL) -> group_pb2.PromptGroup:
    made = group([1, 2], name=name)
    made.required_weights.CopyFrom(label.to_proto())
    return made


def exact(name: str, label: Any) -> group_pb2.PromptGroup:
    made = group([1, 2], name=name, exact=True)
    made.required_weights.CopyFrom(label.to_proto())
    return made


def test_training_groups_come_first_and_held_out_prompts_when_there_are_none_left(make_ring: MakeRing) -> None:
    ring = make_ring(FakeSource(LABEL, LABEL))
    ring.add_evaluation(held_out("e0"), held_out("e1"))
    ring.add(exact("t0", LABEL), exact("t1", LABEL), exact("t2", LABEL))
    ring.run(until=ring.done(5))
    assert ring.admitted() == ["t0", "t1", "t2", "e0", "e1"]
    assert ring.evaluation_prompts.depth().total == 0


def test_held_out_prompts_share_the_batch(make_ring: MakeRing) -> None:
    ring = make_ring(FakeSource(LABEL, LABEL))
    ring.add_evaluation(*[held_out(f"e{n}") for n in range(3)])
    ring.run(until=ring.done(3))
    assert ring.engine.admitted == [["e0"], ["e0", "e1"], ["e0", "e1", "e2"]]


def test_a_training_group_that_comes_meanwhile_is_next_whatever_weights_it_wants(make_ring: MakeRing) -> None:
    ring = make_ring(FakeSource(LABEL, LABEL, NEXT))
    ring.engine.endless = True
    ring.add_evaluation(*[held_out(f"e{n}") for n in range(9)])

    def go_on() -> None:
        ring.engine.endless = False

    def publish() -> None:
        ring.source.newest = NEXT
        ring.add(exact("t0", NEXT))

    ring.play(
        (lambda: len(ring.admitted()) == 3, publish),  # 12 rows, 4 each
        (lambda: ring.leased() == 1, go_on),
        (ring.done(10), lambda: None),
    )
    assert ring.admitted()[:4] == ["e0", "e1", "e2", "t0"]
    assert ring.spans() == {"t0": {(4,)}} | {f"e{n}": {(3,)} for n in range(9)}


def test_held_out_prompts_not_begun_go_back_when_a_training_group_comes(make_ring: MakeRing) -> None:
    ring = make_ring(FakeSource(LABEL, LABEL, NEXT))
    ring.source.withheld = {NEXT}
    ring.add_evaluation(held_out("e0", NEXT))
    ring.play(
        (lambda: ring.evaluation_prompts.depth().leased == 1, lambda: ring.add(exact("t0", LABEL))),
        (ring.done(1), ring.source.withheld.clear),
        (ring.done(2), lambda: None),
    )
    assert ring.admitted() == ["t0", "e0"]
    assert ring.spans() == {"t0": {(3,)}, "e0": {(4,)}}


def test_a_training_group_without_required_weights_is_not_generated_by_those_of_an_old_evaluation(
    make_ring: MakeRing,
) -> None:
    ring = make_ring(FakeSource(NEXT, LABEL, NEXT))
    ring.engine.endless = True
    ring.add_evaluation(held_out("e0", LABEL))

    def go_on() -> None:
        ring.engine.endless = False

    ring.play(
        (lambda: ring.admitted() == ["e0"], lambda: ring.add(group([1], name="t0"))),
        (lambda: ring.leased() == 1, go_on),
        (ring.done(2), lambda: None),
    )
    assert ring.spans() == {"e0": {(3,)}, "t0": {(4,)}}


def test_what_runs_goes_on_while_the_server_does_not_answer_a_look_for_more(
    make_ring: MakeRing, monkeypatch: pytest.MonkeyPatch
) -> None:
    ring = make_ring(FakeSource(LABEL, LABEL))
    ring.add(group([1], name="a"))
    looks = []
    lease = ring.stream.lease

    def away(count: int, block_seconds: float) -> Any:
        if ring.admitted() == ["a"] and not ring.done(1)():
            looks.append(count)
            raise RedisUnreachable("gone", "start it")
        return lease(count, block_seconds)

    monkeypatch.setattr(ring.stream, "lease", away)
    ring.run(until=ring.done(1))
    assert looks == [looks[0]], "one look, and the next one later"
    assert ring.error is None
    assert ring.spans() == {"a": {(3,)}}
