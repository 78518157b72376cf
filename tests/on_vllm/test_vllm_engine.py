"""What the vLLM engine keeps beyond the contract of all engines: where vLLM itself may fail or be asked too much."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from tersely.errors import ConfigValue, EngineFailed
from tersely.rollout.engines import EngineSettings, generate, open_engine
from tersely.rollout.engines.vllm_draws import Draw
from tersely.testing.engines import LABEL, Weights, group, run
from tersely.types import PolicyVersion, WeightsLabel

if TYPE_CHECKING:
    from tersely.rollout.engines.vllm_engine import VllmEngine

Make = Callable[..., tuple[Path, Weights]]
NEXT = WeightsLabel(PolicyVersion(4), "bb" * 32)
PROMPT = [1, 17, 40, 3] * 12


@pytest.mark.parametrize("tied", [True, False])
def test_tokens_are_those_of_the_torch_engine(engine: VllmEngine, model: Make, tied: bool) -> None:
    folder, weights = model(tied=tied)
    asked = group(PROMPT, size=6, limit=20, temperature=0.9, greedy=1)
    reference = open_engine("torch", EngineSettings(device="cpu", threads=1))
    reference.load(folder, LABEL, weights)
    engine.load(folder, LABEL, weights)
    (ours,), (theirs,) = run(engine, asked).values(), run(reference, asked).values()
    assert [ids for ids, _ in ours] == [ids for ids, _ in theirs]
    for (_, found), (_, expected) in zip(ours, theirs, strict=True):
        assert found == pytest.approx(expected, abs=1e-3)


def test_a_reload_that_breaks_off_leaves_the_old_weights(
    engine: VllmEngine, model: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, weights = model()
    _, others = model(seed=1)
    engine.load(folder, LABEL, weights)
    before, scores = run(engine, group(PROMPT)), engine.score(PROMPT)
    assert engine._runtime is not None
    call = engine._runtime.engine.collective_rpc

    def breaks(method: str, kwargs: dict[str, Any]) -> Any:
        monkeypatch.undo()

        def half() -> Any:
            pairs = list(kwargs["weights_iterator"])
            yield from pairs[: len(pairs) // 2]
            raise RuntimeError("the other half is missing")

        return call(method, kwargs={"weights_iterator": half()})

    monkeypatch.setattr(engine._runtime.engine, "collective_rpc", breaks)
    with pytest.raises(EngineFailed, match="the other half"):
        engine.swap(NEXT, others)
    assert engine.label == LABEL
    assert engine.score(PROMPT) == scores
    assert run(engine, group(PROMPT)) == before
    engine.swap(NEXT, others)
    assert engine.score(PROMPT) != scores


def test_weights_that_are_not_finite_fail_the_step_and_better_ones_go_on(engine: VllmEngine, model: Make) -> None:
    folder, weights = model()
    engine.load(folder, LABEL, weights)
    before = run(engine, group(PROMPT))
    engine.swap(NEXT, {name: torch.full_like(tensor, torch.nan) for name, tensor in weights.items()})
    assert not all(map(math.isfinite, engine.score(PROMPT)))
    engine.admit(group(PROMPT))
    with pytest.raises(EngineFailed, match="not finite"):
        engine.step()
    assert engine.running == 0
    engine.swap(LABEL, weights)
    assert run(engine, group(PROMPT)) == before
    everywhere = run(engine, *(group(PROMPT, limit=200, stop=(), name=f"g{n}") for n in range(4)))
    assert all(len(ids) == 200 for samples in everywhere.values() for ids, _ in samples)


def test_a_score_between_steps_costs_running_groups_nothing(engine: VllmEngine, model: Make) -> None:
    folder, weights = model()
    engine.load(folder, LABEL, weights)
    asked = group(PROMPT, limit=16, stop=())
    alone = run(engine, asked)
    engine.admit(asked)
    for _ in range(4):
        engine.step()
        engine.score(PROMPT)
    done = []
    while engine.running:
        done += engine.step()
    assert [list(c.token_ids) for c in done[0].completions] == [ids for ids, _ in alone["g"]]
    assert {len(c.version_spans) for c in done[0].completions} == {1}


def test_more_samples_and_tokens_than_fit_are_generated_all_the_same(engine: VllmEngine, model: Make) -> None:
    folder, weights = model()
    engine.load(folder, LABEL, weights)
    (done,) = generate(engine, [group(PROMPT, size=24, limit=200, stop=())])
    assert [len(completion.token_ids) for completion in done.completions] == [200] * 24


def test_groups_that_no_model_could_run_are_refused(engine: VllmEngine, model: Make) -> None:
    folder, weights = model()
    engine.load(folder, LABEL, weights)
    for wrong in (group(PROMPT, limit=256), group([97])):
        with pytest.raises(EngineFailed):
            engine.admit(wrong)
    with pytest.raises(EngineFailed):
        engine.score([1, 97])
    engine.admit(group(PROMPT))
    with pytest.raises(EngineFailed, match="running already"):
        engine.admit(group(PROMPT))
    engine.cancel("g")
    assert engine.running == 0


def test_draws_of_ended_groups_are_not_kept(engine: VllmEngine, model: Make) -> None:
    from tersely.rollout.engines import vllm_draws

    folder, weights = model()
    engine.load(folder, LABEL, weights)
    run(engine, group(PROMPT, size=3))
    engine.admit(group(PROMPT))
    engine.step()
    assert len(vllm_draws._open) == 4
    engine.cancel("g")
    assert vllm_draws._open == {}


def test_a_draw_is_decided_by_seed_sample_and_position() -> None:
    draw = Draw(seed=7, sample_index=2, greedy=False, temperature=1.0)
    assert draw.at(3) == Draw(seed=7, sample_index=2, greedy=False, temperature=0.5).at(3)
    assert draw.at(3) != draw.at(4)
    assert Draw(seed=7, sample_index=2, greedy=True, temperature=1.0).at(3) is None


def test_a_model_that_vllm_can_not_run_is_named(engine: VllmEngine, model: Make) -> None:
    folder, weights = model()
    (folder / "config.json").write_text('{"model_type": "abacus"}', encoding="utf-8")
    with pytest.raises(EngineFailed, match="vLLM can't run the model"):
        engine.load(folder, LABEL, weights)
    assert engine.label is None
    folder, weights = model()
    engine.load(folder, LABEL, weights)
    assert len(run(engine, group(PROMPT))["g"]) == 4


def test_a_device_that_vllm_is_not_built_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from tersely.rollout.engines import vllm_engine

    monkeypatch.setattr(vllm_engine, "choose_device", lambda wanted, setting: torch.device("mps"))
    with pytest.raises(ConfigValue, match="built for cpu"):
        vllm_engine.VllmEngine(EngineSettings())
