"""What the MLX engine does beyond the contract of all engines."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tersely.errors import ConfigValue, EngineFailed
from tersely.models.tiny import make_tiny_model
from tersely.rollout.engines import mlx_engine
from tersely.rollout.engines.base import EngineSettings
from tersely.rollout.engines.mlx_engine import MlxEngine
from tersely.testing.engines import LABEL, Weights, group, random_weights, run, tiny_config
from tersely.types import PolicyVersion, WeightsLabel

NEXT = WeightsLabel(PolicyVersion(4), "bb" * 32)
PROMPT = [1, 17, 40, 3, 88]
SETTINGS = EngineSettings(device="cpu", threads=1, batch_sequences=8)


@pytest.fixture
def engine(model_folder: Path) -> MlxEngine:
    made = MlxEngine(SETTINGS)
    made.load(model_folder, LABEL, random_weights(tiny_config(), seed=0))
    return made


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
@pytest.mark.parametrize("theta", [100.0, 1e6])
def test_rotary_settings_of_the_config_are_used(tmp_path: Path, architecture: str, theta: float) -> None:
    folder = make_tiny_model(tmp_path, architecture="llama" if architecture == "llama" else "qwen2")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    model.config.rope_parameters["rope_theta"] = theta
    model.config.save_pretrained(folder)
    weights: Weights = dict(model.state_dict())
    mlx = MlxEngine(SETTINGS)
    mlx.load(folder, LABEL, weights)
    ids = [5, 9, 200, 31, 7, 44, 90, 300] * 6
    peer = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        logprobs = torch.log_softmax(peer(torch.tensor([ids])).logits[0, :-1], -1)
    expected = logprobs.gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()
    assert mlx.score(ids) == pytest.approx(expected, abs=1e-4, rel=0)


def test_long_prompts_are_scored_and_prefilled_in_parts(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    mlx = MlxEngine(SETTINGS)
    mlx.load(folder, LABEL, {name: tensor.to(torch.bfloat16) for name, tensor in model.state_dict().items()})
    prompt = [(7 * n) % 400 + 3 for n in range(1100)]
    (ids, logprobs), *_ = run(mlx, group(prompt, size=2, limit=3, stop=()))["g"]
    with torch.no_grad():
        expected = torch.log_softmax(model(torch.tensor([prompt + ids])).logits[0], -1)
    at_the_end = expected[len(prompt) - 1 : -1].gather(1, torch.tensor(ids)[:, None])[:, 0].tolist()
    assert logprobs == pytest.approx(at_the_end, abs=1e-4, rel=0)
    assert mlx.score([*prompt, *ids])[-3:] == pytest.approx(at_the_end, abs=1e-4, rel=0)


def test_a_tied_head_comes_once_or_equal(engine: MlxEngine) -> None:
    weights = random_weights(tiny_config(), seed=1)
    engine.swap(NEXT, {**weights, "lm_head.weight": weights["model.embed_tokens.weight"].clone()})
    assert engine.label == NEXT
    with pytest.raises(EngineFailed, match="differ"):
        engine.swap(LABEL, {**weights, "lm_head.weight": weights["model.embed_tokens.weight"] + 1})
    assert engine.label == NEXT


def test_weights_that_would_be_rounded_are_refused(engine: MlxEngine) -> None:
    with pytest.raises(EngineFailed, match="float64"):
        engine.swap(NEXT, random_weights(tiny_config(), seed=1, dtype=torch.float64))
    assert engine.label == LABEL


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_published_bytes_of_any_narrow_type_are_widened_without_loss(model_folder: Path, dtype: torch.dtype) -> None:
    narrow = {n: t.to(torch.float16).to(dtype) for n, t in random_weights(tiny_config(), seed=0).items()}
    mlx, wide = MlxEngine(SETTINGS), MlxEngine(SETTINGS)
    mlx.load(model_folder, LABEL, narrow)
    wide.load(model_folder, LABEL, {name: tensor.float() for name, tensor in narrow.items()})
    assert mlx.score(PROMPT) == wide.score(PROMPT)


def test_a_model_with_other_than_full_attention_is_refused(tmp_path: Path) -> None:
    config = tiny_config()
    config.model_type = "qwen2"
    config.layer_types = ["full_attention", "sliding_attention"]
    config.sliding_window = 4
    config.save_pretrained(tmp_path)
    with pytest.raises(EngineFailed, match="full_attention"):
        MlxEngine(SETTINGS).load(tmp_path, LABEL, random_weights(tiny_config(), seed=0))


def test_a_device_that_mlx_lacks_is_a_fault_of_the_config() -> None:
    with pytest.raises(ConfigValue, match="cuda"):
        MlxEngine(EngineSettings(device="cuda"))


def test_another_thread_is_refused_and_leaves_what_runs(engine: MlxEngine) -> None:
    engine.admit(group(PROMPT))
    seen: list[BaseException] = []

    def elsewhere() -> None:
        try:
            engine.step()
        except EngineFailed as error:
            seen.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert "thread" in str(seen[0])
    while engine.running:
        done = engine.step()
    assert len(done) == 1


def test_logits_that_are_not_finite_fail_their_groups_and_leave_the_engine_usable(engine: MlxEngine) -> None:
    broken = random_weights(tiny_config(), seed=0)
    broken["model.norm.weight"][:] = float("nan")
    engine.swap(NEXT, broken)
    engine.admit(group(PROMPT))
    with pytest.raises(EngineFailed, match="not finite"):
        engine.step()
    assert engine.running == 0
    engine.swap(LABEL, random_weights(tiny_config(), seed=0))
    assert len(run(engine, group(PROMPT))["g"]) == 4


def test_groups_whose_prompt_can_not_run_again_after_a_swap_are_forgotten(
    engine: MlxEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.admit(group(PROMPT))
    engine.step()

    def out_of_memory(model: object) -> None:
        raise RuntimeError("no memory for a cache")

    with monkeypatch.context() as patched:
        patched.setattr(mlx_engine, "make_prompt_cache", out_of_memory)
        with pytest.raises(RuntimeError, match="no memory"):
            engine.swap(NEXT, random_weights(tiny_config(), seed=1))
    assert engine.running == 0
    assert len(run(engine, group(PROMPT))["g"]) == 4


def test_exact_groups_come_out_bit_by_bit_in_another_process(engine: MlxEngine, model_folder: Path) -> None:
    run(engine, group([9, 9], name="before", size=3))
    here = run(engine, group(PROMPT, exact=True, limit=20))["g"]
    program = (
        "import sys; from pathlib import Path\n"
        "from tersely.rollout.engines.base import EngineSettings\n"
        "from tersely.rollout.engines.mlx_engine import MlxEngine\n"
        "from tersely.testing.engines import *\n"
        "engine = MlxEngine(EngineSettings(device='cpu', threads=1, batch_sequences=4))\n"
        "engine.load(Path(sys.argv[1]), LABEL, random_weights(tiny_config(), seed=0))\n"
        f"print(repr(run(engine, group({PROMPT}, exact=True, limit=20))['g']))\n"
    )
    there = subprocess.run(
        [sys.executable, "-c", program, str(model_folder)], check=True, capture_output=True, text=True
    ).stdout
    assert there.strip() == repr(here)


def test_without_a_token_budget_memory_decides(model_folder: Path, engine: MlxEngine) -> None:
    engine.admit(group(PROMPT, size=2))
    assert engine.has_room(group(PROMPT, size=2, limit=2000, name="many"))
    assert not engine.has_room(group(PROMPT, size=2, limit=10**9, name="more than any memory"))
