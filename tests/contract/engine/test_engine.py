"""What every engine keeps, whatever is inside it: completions, seeds, labels, weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tersely.errors import EngineFailed
from tersely.rollout.engines import Engine, EngineSettings, open_engine
from tersely.rollout.engines.base import generate
from tersely.testing.engines import LABEL, Weights, group, run
from tersely.types import PolicyVersion, WeightsLabel
from tersely.v1 import common_pb2

NEXT = WeightsLabel(PolicyVersion(4), "bb" * 32)
PROMPT = [1, 17, 40, 3]
STOPS = tuple(range(0, 97, 8))


def test_every_group_comes_back_once_and_unchanged_with_its_completions_in_order(engine: Engine) -> None:
    asked = [group(PROMPT, size=n + 1, name=f"g{n}", exact=n == 2) for n in range(4)]
    done = {one.prompt.group_id: one for one in generate(engine, asked)}
    assert sorted(done) == ["g0", "g1", "g2", "g3"]
    assert engine.running == 0
    for before in asked:
        after = done[before.group_id]
        assert after.prompt == before
        assert [c.sample_index for c in after.completions] == list(range(before.group_size))
        assert after.sampled_tokens == sum(len(c.token_ids) for c in after.completions)
        assert after.seconds >= 0


def test_a_stop_token_ends_a_completion_and_is_part_of_it(engine: Engine) -> None:
    (done,) = generate(engine, [group(PROMPT, size=16, limit=8, stop=STOPS)])
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


def test_a_stop_token_at_the_limit_is_a_stop(engine: Engine) -> None:
    (done,) = generate(engine, [group(PROMPT, size=16, limit=1, stop=tuple(range(0, 97, 2)))])
    assert {(c.token_ids[0] % 2 == 0, c.finish_reason) for c in done.completions} <= {
        (True, common_pb2.FINISH_REASON_STOP),
        (False, common_pb2.FINISH_REASON_LENGTH),
    }


def test_the_limit_is_never_passed_when_nothing_stops(engine: Engine) -> None:
    (done,) = generate(engine, [group(PROMPT, limit=5, stop=())])
    assert all(len(c.token_ids) <= 5 for c in done.completions)
    assert {c.finish_reason for c in done.completions} == {common_pb2.FINISH_REASON_LENGTH}


def test_the_seed_alone_decides_in_any_engine_of_the_kind(make: Callable[[], Engine]) -> None:
    exact = group(PROMPT, size=4, exact=True)
    first = make()
    alone = run(first, exact)["g"]
    second = make()
    again = run(second, group([9], name="before"), exact, group([8, 8], name="after"))["g"]
    if first.capabilities().bit_exact:
        assert again == alone
    assert [ids for ids, _ in again] == [ids for ids, _ in alone]
    assert run(second, group(PROMPT, size=4, exact=True, seed=12))["g"] != alone


def test_samples_of_a_group_differ_and_greedy_ones_do_not(engine: Engine) -> None:
    completions = run(engine, group(PROMPT, size=6, greedy=2, limit=10, stop=()))["g"]
    assert completions[0][0] == completions[1][0]
    assert len({tuple(ids) for ids, _ in completions}) == 5
    other_seed = run(engine, group(PROMPT, size=6, greedy=2, limit=10, stop=(), seed=99))["g"]
    assert other_seed[0][0] == completions[0][0]


def test_a_swap_changes_label_and_tokens_and_a_swap_back_brings_them_again(
    engine: Engine, weights: Weights, next_weights: Weights
) -> None:
    asked = group(PROMPT * 20, exact=True)
    before = run(engine, asked)
    engine.swap(NEXT, next_weights)
    assert engine.label == NEXT
    (done,) = generate(engine, [asked])
    assert {s.weights.policy_version for c in done.completions for s in c.version_spans} == {4}
    assert [list(c.token_ids) for c in done.completions] != [ids for ids, _ in before["g"]]
    engine.swap(LABEL, weights)
    assert [ids for ids, _ in run(engine, asked)["g"]] == [ids for ids, _ in before["g"]]


@pytest.mark.parametrize("fault", ["missing", "unknown", "shape"])
def test_weights_that_do_not_fit_are_refused_whole(engine: Engine, next_weights: Weights, fault: str) -> None:
    before = run(engine, group(PROMPT, exact=True))
    wrong = dict(next_weights)
    if fault == "missing":
        del wrong["model.norm.weight"]
    elif fault == "unknown":
        wrong["model.extra"] = torch.zeros(1)
    else:
        wrong["model.norm.weight"] = torch.zeros(31)
    with pytest.raises(EngineFailed):
        engine.swap(NEXT, wrong)
    assert engine.label == LABEL
    assert [ids for ids, _ in run(engine, group(PROMPT, exact=True))["g"]] == [ids for ids, _ in before["g"]]


def test_nothing_is_generated_swapped_or_scored_before_a_load(kind: str, weights: Weights) -> None:
    fresh = open_engine(kind, EngineSettings(device="cpu", threads=1))
    assert fresh.label is None
    with pytest.raises(EngineFailed):
        fresh.admit(group(PROMPT))
    with pytest.raises(EngineFailed):
        fresh.swap(LABEL, weights)
    with pytest.raises(EngineFailed):
        fresh.score(PROMPT)
    assert fresh.running == 0


def test_a_folder_without_a_model_is_refused(engine: Engine, tmp_path: Path, weights: Weights) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(EngineFailed):
        engine.load(empty, LABEL, weights)


def test_capabilities_name_the_engine_and_its_rows(engine: Engine, kind: str) -> None:
    can = engine.capabilities()
    assert (can.name, can.threads, can.batch_sequences) == (kind, 1, 8)
    assert can.logprob_tolerance > 0
    assert (can.dtype == "none") == (kind == "stub")
