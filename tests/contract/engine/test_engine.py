"""What every engine keeps, whatever is inside it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tersely.errors import EngineFailed
from tersely.rollout.engines import Engine, EngineSettings, open_engine
from tersely.testing.engines import LABEL, group, random_weights, run, tiny_config
from tersely.types import PolicyVersion, WeightsLabel
from tersely.v1 import common_pb2

NEXT = WeightsLabel(PolicyVersion(4), "bb" * 32)
PROMPT = [1, 17, 40, 3]
STOPS = tuple(range(0, 97, 8))


@pytest.fixture(params=["torch", "stub"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Engine]:
    tiny_config().save_pretrained(tmp_path)

    def made() -> Engine:
        engine = open_engine(request.param, EngineSettings(device="cpu", threads=1, batch_sequences=8))
        engine.load(tmp_path, LABEL, random_weights(tiny_config(), seed=0))
        return engine

    return made


@pytest.fixture
def engine(make: Callable[[], Engine]) -> Engine:
    return make()


def test_every_group_comes_back_once_and_unchanged_with_its_completions_in_order(engine: Engine) -> None:
    asked = [group(PROMPT, size=n + 1, name=f"g{n}", exact=n == 2) for n in range(4)]
    done = {one.prompt.group_id: one for one in engine.generate(asked, lambda: False)}
    assert sorted(done) == ["g0", "g1", "g2", "g3"]
    for before in asked:
        after = done[before.group_id]
        assert after.prompt == before
        assert [c.sample_index for c in after.completions] == list(range(before.group_size))
        assert after.sampled_tokens == sum(len(c.token_ids) for c in after.completions)
        assert after.seconds >= 0


def test_a_stop_token_ends_a_completion_and_is_part_of_it(engine: Engine) -> None:
    (done,) = engine.generate([group(PROMPT, size=16, limit=8, stop=STOPS)], lambda: False)
    reasons = set()
    for completion in done.completions:
        ids = list(completion.token_ids)
        reasons.add(completion.finish_reason)
        assert 1 <= len(ids) <= 8
        assert len(completion.behaviour_logprobs) == len(ids)
        assert all(logprob <= 0 for logprob in completion.behaviour_logprobs)
        assert not set(ids[:-1]) & set(STOPS)
        assert (ids[-1] in STOPS) == (completion.finish_reason == common_pb2.FINISH_REASON_STOP)
        assert len(ids) == 8 or completion.finish_reason == common_pb2.FINISH_REASON_STOP
        assert [(s.weights, s.first_token, s.token_count) for s in completion.version_spans] == [
            (LABEL.to_proto(), 0, len(ids))
        ]
    assert reasons == {common_pb2.FINISH_REASON_STOP, common_pb2.FINISH_REASON_LENGTH}


def test_the_limit_is_never_passed_when_nothing_stops(engine: Engine) -> None:
    (done,) = engine.generate([group(PROMPT, limit=5, stop=())], lambda: False)
    assert all(len(c.token_ids) <= 5 for c in done.completions)
    assert {c.finish_reason for c in done.completions} == {common_pb2.FINISH_REASON_LENGTH}


def test_the_seed_alone_decides_in_any_engine_of_the_kind(make: Callable[[], Engine]) -> None:
    exact = group(PROMPT, size=4, exact=True)
    alone = run(make(), exact)["g"]
    second = make()
    assert run(second, group([9], name="before"), exact, group([8, 8], name="after"))["g"] == alone
    assert run(second, group(PROMPT, size=4, exact=True, seed=12))["g"] != alone


def test_samples_of_a_group_differ_and_greedy_ones_do_not(engine: Engine) -> None:
    completions = run(engine, group(PROMPT, size=6, greedy=2, limit=10, stop=()))["g"]
    assert completions[0] == completions[1]
    assert len({tuple(ids) for ids, _ in completions}) == 5
    other_seed = run(engine, group(PROMPT, size=6, greedy=2, limit=10, stop=(), seed=99))["g"]
    assert other_seed[0] == completions[0]


def test_a_swap_changes_label_and_tokens(engine: Engine) -> None:
    before = run(engine, group(PROMPT))
    engine.swap(NEXT, random_weights(tiny_config(), seed=1))
    assert engine.label == NEXT
    (done,) = engine.generate([group(PROMPT)], lambda: False)
    assert {s.weights.policy_version for c in done.completions for s in c.version_spans} == {4}
    assert [list(c.token_ids) for c in done.completions] != [ids for ids, _ in before["g"]]


@pytest.mark.parametrize("fault", ["missing", "unknown", "shape"])
def test_weights_that_do_not_fit_are_refused_whole(engine: Engine, fault: str) -> None:
    before = run(engine, group(PROMPT))
    weights = random_weights(tiny_config(), seed=1)
    if fault == "missing":
        del weights["model.norm.weight"]
    elif fault == "unknown":
        weights["model.extra"] = torch.zeros(1)
    else:
        weights["model.norm.weight"] = torch.zeros(31)
    with pytest.raises(EngineFailed):
        engine.swap(NEXT, weights)
    assert engine.label == LABEL
    assert run(engine, group(PROMPT)) == before


def test_nothing_is_generated_or_swapped_before_a_load(make: Callable[[], Engine]) -> None:
    fresh = open_engine(make().capabilities().name, EngineSettings(device="cpu", threads=1))
    assert fresh.label is None
    with pytest.raises(EngineFailed):
        list(fresh.generate([group(PROMPT)], lambda: False))
    with pytest.raises(EngineFailed):
        fresh.swap(LABEL, random_weights(tiny_config(), seed=0))


def test_a_cancelled_generation_yields_nothing_more(engine: Engine) -> None:
    asked = 0

    def cancelled() -> bool:
        nonlocal asked
        asked += 1
        return asked > 3

    assert list(engine.generate([group(PROMPT, size=8, limit=100, stop=())], cancelled)) == []
    assert asked == 4


def test_capabilities_name_the_engine_and_its_rows(engine: Engine) -> None:
    can = engine.capabilities()
    assert can.name in {"torch", "stub"}
    assert (can.threads, can.batch_sequences, can.bit_exact) == (1, 8, True)
