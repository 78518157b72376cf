"""How groups come and go in every engine: room, joining, leaving, cancelling, and swaps under running groups."""

from __future__ import annotations

import pytest

from tersely.errors import EngineFailed
from tersely.rollout.engines import Engine, GeneratedGroup
from tersely.rollout.engines.base import generate
from tersely.testing.engines import LABEL, Weights, group, run
from tersely.types import PolicyVersion, WeightsLabel
from tersely.v1 import group_pb2

NEXT = WeightsLabel(PolicyVersion(4), "bb" * 32)
PROMPT = [1, 17, 40, 3]


def endless(name: str = "long", size: int = 2, limit: int = 40) -> group_pb2.PromptGroup:
    """A group that is still running after a few steps of any engine."""
    made = group(PROMPT, size=size, limit=limit, stop=(), name=name)
    made.target_tokens = 4 * limit
    return made


def to_the_end(engine: Engine) -> dict[str, GeneratedGroup]:
    """Steps until nothing runs."""
    done: dict[str, GeneratedGroup] = {}
    while engine.running:
        done.update((one.prompt.group_id, one) for one in engine.step())
    return done


def ids(done: GeneratedGroup) -> list[list[int]]:
    return [list(completion.token_ids) for completion in done.completions]


def test_an_idle_engine_has_room_for_any_group(engine: Engine) -> None:
    assert engine.has_room(group(PROMPT, size=50, limit=100))
    assert engine.has_room(group(PROMPT, exact=True))
    (done,) = generate(engine, [group(PROMPT, size=20)])
    assert len(done.completions) == 20


def test_an_exact_group_runs_alone(engine: Engine) -> None:
    engine.admit(group(PROMPT, size=1, name="any"))
    assert engine.has_room(group(PROMPT, size=1, name="other"))
    assert not engine.has_room(group(PROMPT, size=1, name="exact", exact=True))
    engine.cancel("any")
    engine.admit(group(PROMPT, size=1, name="exact", exact=True))
    assert not engine.has_room(group(PROMPT, size=1, name="other"))
    assert not engine.has_room(group(PROMPT, size=1, name="exact too", exact=True))
    engine.cancel("exact")


def test_rows_beyond_the_batch_wait(engine: Engine) -> None:
    engine.admit(endless("a", size=5))
    assert engine.has_room(group(PROMPT, size=3, name="b"))
    assert not engine.has_room(group(PROMPT, size=4, name="b"))
    engine.cancel("a")


def test_tokens_beyond_the_budget_wait(engine: Engine) -> None:
    engine.admit(endless("a", size=5, limit=100))  # 504 of 600 tokens
    assert engine.has_room(group(PROMPT, size=1, limit=92, name="b"))
    assert not engine.has_room(group(PROMPT, size=1, limit=93, name="b"))
    engine.cancel("a")


def test_samples_that_ended_leave_their_room_while_others_of_their_group_go_on(engine: Engine) -> None:
    long = group(PROMPT, size=8, limit=70, stop=tuple(range(2, 97, 9)), name="long")  # 564 of 600 tokens
    long.target_tokens = 40
    engine.admit(long)
    assert engine.rows_running == 8
    assert not engine.has_room(group(PROMPT, size=1, limit=60, name="next"))
    while engine.rows_running > 6:
        assert engine.step() == []
    left = engine.rows_running
    assert engine.running == 1
    assert left > 0
    assert not engine.has_room(group(PROMPT, size=9 - left, limit=60, name="next"))
    joins = group(PROMPT, size=8 - left, limit=60, stop=(), name="next")
    assert engine.has_room(joins)
    engine.admit(joins)
    assert engine.rows_running == 8
    assert sorted(to_the_end(engine)) == ["long", "next"]
    assert engine.rows_running == 0


def test_groups_join_and_leave_while_others_run(engine: Engine) -> None:
    order: list[str] = []
    engine.admit(endless())
    for _ in range(2):
        order += [done.prompt.group_id for done in engine.step()]
    engine.admit(group([7, 8, 9, 10, 11, 12], size=3, limit=3, name="short"))
    assert engine.running == 2
    while "short" not in order:
        order += [done.prompt.group_id for done in engine.step()]
    assert engine.running == 1
    engine.admit(group([5], size=2, limit=2, name="late"))
    while engine.running:
        order += [done.prompt.group_id for done in engine.step()]
    assert order == ["short", "late", "long"]


def test_a_group_samples_the_same_beside_others_as_alone(engine: Engine) -> None:
    alone = [run(engine, one) for one in (endless(), group([7, 8, 9], size=3, limit=5, name="short"))]
    engine.admit(endless())
    engine.step()
    engine.admit(group([7, 8, 9], size=3, limit=5, name="short"))
    done = to_the_end(engine)
    assert ids(done["long"]) == [sampled for sampled, _ in alone[0]["long"]]
    assert ids(done["short"]) == [sampled for sampled, _ in alone[1]["short"]]


def test_a_cancelled_group_is_gone_and_the_others_go_on(engine: Engine) -> None:
    alone = run(engine, endless("stays"))
    engine.admit(endless("stays"))
    engine.admit(endless("goes", size=3))
    engine.step()
    engine.cancel("goes")
    engine.cancel("nobody")
    assert engine.running == 1
    assert engine.has_room(group(PROMPT, size=6, limit=4, name="next"))
    done = to_the_end(engine)
    assert sorted(done) == ["stays"]
    assert ids(done["stays"]) == [sampled for sampled, _ in alone["stays"]]
    assert ids(next(generate(engine, [endless("goes", size=1)])))  # its id is free again


def test_a_generation_that_is_called_off_leaves_nothing_running(engine: Engine) -> None:
    asked = 0

    def cancelled() -> bool:
        nonlocal asked
        asked += 1
        return asked > 3

    assert list(generate(engine, [endless(size=8)], cancelled)) == []
    assert asked == 4
    assert engine.running == 0


def test_a_group_that_can_not_be_run_is_refused_and_forgotten(engine: Engine) -> None:
    for wrong in (group([], name="empty"), group(PROMPT, size=0, name="nobody"), group(PROMPT, limit=0, name="none")):
        with pytest.raises(EngineFailed):
            engine.admit(wrong)
    assert engine.running == 0
    assert len(run(engine, group(PROMPT))["g"]) == 4


def test_a_swap_under_running_groups_gives_each_stretch_its_own_span(engine: Engine, next_weights: Weights) -> None:
    if not engine.capabilities().in_flight:
        engine.admit(endless())
        engine.step()
        with pytest.raises(EngineFailed):
            engine.swap(NEXT, next_weights)
        assert {
            span.weights.policy_version for c in to_the_end(engine)["long"].completions for span in c.version_spans
        } == {LABEL.policy_version}
        return
    engine.admit(endless())
    for _ in range(3):
        assert engine.step() == []
    engine.swap(NEXT, next_weights)
    engine.admit(group(PROMPT, size=2, limit=4, stop=(), name="after"))
    done = to_the_end(engine)
    for completion in done["long"].completions:
        old, new = completion.version_spans
        assert (old.weights, new.weights) == (LABEL.to_proto(), NEXT.to_proto())
        assert (old.first_token, new.first_token) == (0, old.token_count)
        assert old.token_count >= 3
        assert old.token_count + new.token_count == len(completion.token_ids)
        assert len(completion.behaviour_logprobs) == len(completion.token_ids)
    assert {tuple(s.weights.policy_version for s in c.version_spans) for c in done["after"].completions} == {(4,)}


def test_a_failed_swap_leaves_running_groups_as_they_were(engine: Engine, next_weights: Weights) -> None:
    alone = run(engine, endless())
    engine.admit(endless())
    engine.step()
    with pytest.raises(EngineFailed):
        engine.swap(NEXT, {name: tensor for name, tensor in next_weights.items() if "norm" not in name})
    (done,) = to_the_end(engine).values()
    assert ids(done) == [sampled for sampled, _ in alone["long"]]
    assert {len(completion.version_spans) for completion in done.completions} == {1}
