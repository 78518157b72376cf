"""The stub engine: deterministic, honest about spans, and as slow as it is told to be."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tersely.errors import ConfigValue, EngineFailed
from tersely.rollout.engines.base import EngineSettings, GeneratedGroup, generate
from tersely.rollout.engines.stub import StubEngine
from tersely.testing.stub_pace import STEP_SECONDS_ENV
from tersely.types import PolicyVersion, WeightsLabel
from tersely.v1 import common_pb2, group_pb2

FIRST = WeightsLabel(PolicyVersion(0), "a" * 64)
SECOND = WeightsLabel(PolicyVersion(1), "b" * 64)
STOP = 7


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 50}))
    return tmp_path


def engine_in(folder: Path, **options: float) -> StubEngine:
    engine = StubEngine(EngineSettings(batch_sequences=8, batch_tokens=400), **options)  # type: ignore[arg-type]
    engine.load(folder, FIRST, {})
    return engine


def group(name: str, size: int = 4, *, exact: bool = False, tokens: int = 24) -> group_pb2.PromptGroup:
    message = group_pb2.PromptGroup(
        group_id=name,
        prompt_id=name,
        group_size=size,
        prompt_token_ids=[1, 2, 3],
        stop_token_ids=[STOP],
        target_tokens=12,
        purpose=common_pb2.GROUP_PURPOSE_TRAINING,
    )
    message.sampling.max_completion_tokens = tokens
    message.sampling.seed = 5
    if exact:
        message.required_weights.CopyFrom(FIRST.to_proto())
    return message


def ids(done: GeneratedGroup) -> list[list[int]]:
    return [list(completion.token_ids) for completion in done.completions]


def test_ids_do_not_depend_on_company_or_on_tokens_per_step(folder: Path) -> None:
    (alone,) = generate(engine_in(folder, step_tokens=1), [group("a")])
    together = {
        done.prompt.group_id: done for done in generate(engine_in(folder, step_tokens=5), [group("b"), group("a")])
    }
    assert ids(together["a"]) == ids(alone)
    assert len({tuple(row) for row in ids(alone)}) == 4


def test_a_stop_token_comes_last_or_not_at_all(folder: Path) -> None:
    (done,) = generate(engine_in(folder), [group("a", 200, tokens=16)])
    reasons = {completion.finish_reason for completion in done.completions}
    assert reasons == {common_pb2.FINISH_REASON_STOP, common_pb2.FINISH_REASON_LENGTH}
    for completion in done.completions:
        stopped = completion.finish_reason == common_pb2.FINISH_REASON_STOP
        assert list(completion.token_ids).count(STOP) == (1 if stopped else 0)
        assert (completion.token_ids[-1] == STOP) == stopped
        assert len(completion.behaviour_logprobs) == len(completion.token_ids) <= 16


def test_a_swap_in_flight_leaves_a_span_per_label(folder: Path) -> None:
    (undisturbed,) = generate(engine_in(folder), [group("a")])
    engine = engine_in(folder, step_tokens=3)
    engine.admit(group("a"))
    assert engine.step() == []
    engine.swap(SECOND, {})
    done: list[GeneratedGroup] = []
    while not done:
        done = engine.step()
    for completion, before in zip(done[0].completions, undisturbed.completions, strict=True):
        spans = completion.version_spans
        length = len(completion.token_ids)
        assert length == len(before.token_ids)
        assert completion.token_ids[:3] == before.token_ids[:3]
        assert sum(span.token_count for span in spans) == length
        labels = [WeightsLabel.from_proto(span.weights) for span in spans]
        assert labels == ([FIRST, SECOND] if length > 3 else [FIRST])
    assert any(ids(done[0])[i] != ids(undisturbed)[i] for i in range(4))


def test_a_swap_before_the_first_token_leaves_no_empty_span(folder: Path) -> None:
    engine = engine_in(folder)
    engine.admit(group("a"))
    engine.swap(SECOND, {})
    (done,) = [one for _ in range(24) for one in engine.step()]
    assert {len(completion.version_spans) for completion in done.completions} == {1}
    assert {completion.version_spans[0].weights.policy_version for completion in done.completions} == {1}


def test_room_is_bounded_by_rows_tokens_and_exactness(folder: Path) -> None:
    engine = engine_in(folder)
    assert engine.has_room(group("big", 99))
    engine.admit(group("a"))
    assert engine.has_room(group("b"))
    assert not engine.has_room(group("b", 5))
    assert not engine.has_room(group("b", 2, tokens=300))
    assert not engine.has_room(group("b", exact=True))
    engine.cancel("a")
    assert engine.running == 0
    engine.admit(group("c", exact=True))
    assert not engine.has_room(group("b", 1))


def test_a_step_takes_the_time_it_is_told_to(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STEP_SECONDS_ENV, "0.05")
    engine = engine_in(folder)
    engine.admit(group("a"))
    began = time.monotonic()
    engine.step()
    assert time.monotonic() - began >= 0.05


def test_nonsense_in_the_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STEP_SECONDS_ENV, "fast")
    with pytest.raises(ConfigValue, match=STEP_SECONDS_ENV):
        StubEngine(EngineSettings())


def test_nothing_is_generated_or_scored_without_a_model() -> None:
    engine = StubEngine(EngineSettings())
    with pytest.raises(EngineFailed):
        engine.admit(group("a"))
    with pytest.raises(EngineFailed):
        engine.score([1, 2])
