from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2Config

from tersely.errors import EngineFailed
from tersely.grpo.seeds import uniform
from tersely.rollout.engines.base import EngineSettings, generate
from tersely.rollout.engines.torch_engine import TorchEngine
from tersely.testing.engines import LABEL, group, random_weights, run, tiny_config
from tersely.types import PolicyVersion, WeightsLabel
from tersely.v1 import common_pb2

PROMPT = [1, 17, 40, 3, 88, 61, 9]


def naive_logprobs(ids: list[int], temperature: float) -> torch.Tensor:
    """All next-token logprobs by one full forward without any cache, in float64; positions x vocabulary."""
    config = tiny_config()
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval()
    model.load_state_dict(random_weights(config, seed=0, dtype=torch.float64), strict=False)
    with torch.no_grad():
        return torch.log_softmax(model(torch.tensor([ids])).logits[0] / temperature, dim=-1)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_ids_and_logprobs_equal_a_full_forward_without_cache(engine: TorchEngine, temperature: float) -> None:
    asked = group(PROMPT, temperature=temperature)
    for sample_index, (ids, logprobs) in enumerate(run(engine, asked)["g"]):
        rows = naive_logprobs(PROMPT + ids, temperature)[len(PROMPT) - 1 : -1]
        assert torch.allclose(
            rows.gather(1, torch.tensor(ids)[:, None])[:, 0].float(), torch.tensor(logprobs), atol=1e-5
        )
        for position, row in enumerate(rows):
            at = uniform(11, sample_index, position)
            cdf = row.exp().cumsum(0)
            below, above = (cdf[ids[position]] - row[ids[position]].exp()).item(), cdf[ids[position]].item()
            assert below - 1e-5 <= at < above + 1e-5


def test_greedy_samples_take_the_likeliest_token_and_the_others_do_not(engine: TorchEngine) -> None:
    completions = run(engine, group(PROMPT, greedy=1, stop=(96,)))["g"]
    ids, logprobs = completions[0]
    rows = naive_logprobs(PROMPT + ids, 1.0)[len(PROMPT) - 1 : -1]
    assert ids == rows.argmax(-1).tolist()
    assert torch.allclose(rows.max(-1).values.float(), torch.tensor(logprobs), atol=1e-5)
    assert all(other != ids for other, _ in completions[1:])


def test_a_completion_ends_with_its_stop_token_or_at_the_limit(engine: TorchEngine) -> None:
    stops = tuple(range(0, 97, 6))
    (done,) = generate(engine, [group(PROMPT, size=16, limit=8, stop=stops)])
    reasons = set()
    for index, completion in enumerate(done.completions):
        ids = list(completion.token_ids)
        reasons.add(completion.finish_reason)
        assert completion.sample_index == index
        assert len(completion.behaviour_logprobs) == len(ids)
        assert not set(ids[:-1]) & set(stops)
        if completion.finish_reason == common_pb2.FINISH_REASON_STOP:
            assert ids[-1] in stops
        else:
            assert len(ids) == 8
            assert ids[-1] not in stops
        (span,) = completion.version_spans
        assert (span.weights, span.first_token, span.token_count) == (LABEL.to_proto(), 0, len(ids))
    assert reasons == {common_pb2.FINISH_REASON_STOP, common_pb2.FINISH_REASON_LENGTH}


def test_the_seed_decides_the_tokens(engine: TorchEngine) -> None:
    assert run(engine, group(PROMPT)) == run(engine, group(PROMPT))
    assert run(engine, group(PROMPT)) != run(engine, group(PROMPT, seed=12))


def test_a_required_training_group_is_bit_equal_alone_and_after_and_beside_others(engine: TorchEngine) -> None:
    exact = group(PROMPT, size=6, limit=20, exact=True)
    alone = run(engine, exact)["g"]
    others = [group([2, 9, 30], name="a"), group([7] * 15, name="b", exact=True)]
    assert run(engine, *others, exact, group([4, 4], name="c"))["g"] == alone


OTHER_PROCESS = """
import json, sys
from pathlib import Path
from tersely.testing.engines import *
from tersely.rollout.engines.base import EngineSettings
from tersely.rollout.engines.torch_engine import TorchEngine
engine = TorchEngine(EngineSettings(device="cpu", threads=1))
engine.load(Path(sys.argv[1]), LABEL, random_weights(tiny_config(), seed=4))
run(engine, group([9, 9, 9, 2], size=3, name="before"))
engine.swap(LABEL, random_weights(tiny_config(), seed=0))
print(json.dumps(run(engine, group(json.loads(sys.argv[2]), size=6, limit=20, exact=True))["g"]))
"""


def test_a_required_training_group_is_bit_equal_in_another_process_after_a_swap(
    engine: TorchEngine, model_folder: Path
) -> None:
    here = run(engine, group(PROMPT, size=6, limit=20, exact=True))["g"]
    there = subprocess.run(
        [sys.executable, "-c", OTHER_PROCESS, str(model_folder), json.dumps(PROMPT)],
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    assert [(ids, logprobs) for ids, logprobs in json.loads(there.stdout)] == here


GROUPS = [
    group([3, 8, 21], size=3, limit=14, seed=1, name="short"),
    group(list(range(20, 50)), size=2, limit=9, seed=2, name="long", temperature=0.7),
    group(PROMPT, size=4, limit=17, seed=3, name="middle", greedy=1),
]


def test_groups_decoded_together_give_the_tokens_of_each_alone(engine64: TorchEngine) -> None:
    together = run(engine64, *GROUPS)
    for one in GROUPS:
        alone = run(engine64, one)[one.group_id]
        assert [ids for ids, _ in together[one.group_id]] == [ids for ids, _ in alone]
        for (_, left), (_, right) in zip(together[one.group_id], alone, strict=True):
            assert torch.allclose(torch.tensor(left), torch.tensor(right), atol=1e-6)


def test_groups_decoded_together_in_fp32_differ_only_by_rounding(engine: TorchEngine) -> None:
    together = run(engine, *GROUPS)
    equal = 0
    for one in GROUPS:
        for (ids, logprobs), (ids_alone, logprobs_alone) in zip(
            together[one.group_id], run(engine, one)[one.group_id], strict=True
        ):
            if ids == ids_alone:
                equal += 1
                assert torch.allclose(torch.tensor(logprobs), torch.tensor(logprobs_alone), atol=1e-4)
    assert equal >= 8


def test_groups_come_out_as_they_finish_and_each_once(engine: TorchEngine) -> None:
    names = [
        g.prompt.group_id
        for g in generate(
            engine, [group(PROMPT, limit=12, name="slow", stop=()), group(PROMPT, limit=2, name="quick", stop=())]
        )
    ]
    assert names == ["quick", "slow"]


def test_a_swap_changes_label_and_tokens_and_swapping_back_restores_them(engine: TorchEngine) -> None:
    before = run(engine, group(PROMPT))
    other = WeightsLabel(PolicyVersion(4), "bb" * 32)
    engine.swap(other, random_weights(tiny_config(), seed=1))
    assert engine.label == other
    assert run(engine, group(PROMPT)) != before
    engine.swap(LABEL, random_weights(tiny_config(), seed=0))
    assert run(engine, group(PROMPT)) == before


def broken(kind: str) -> dict[str, torch.Tensor]:
    weights = random_weights(tiny_config(), seed=1)
    if kind == "missing":
        del weights["model.norm.weight"]
    elif kind == "unknown":
        weights["model.extra"] = torch.zeros(1)
    elif kind == "shape":
        weights["model.norm.weight"] = torch.zeros(31)
    elif kind == "dtype":
        weights["model.norm.weight"] = torch.zeros(32, dtype=torch.float64)
    else:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"] + 1
    return weights


@pytest.mark.parametrize("kind", ["missing", "unknown", "shape", "dtype", "untied"])
def test_weights_that_do_not_fit_are_refused_and_the_old_ones_stay(engine: TorchEngine, kind: str) -> None:
    before = run(engine, group(PROMPT))
    with pytest.raises(EngineFailed):
        engine.swap(WeightsLabel(PolicyVersion(9), "cc" * 32), broken(kind))
    assert engine.label == LABEL
    assert run(engine, group(PROMPT)) == before


def test_an_untied_model_takes_its_own_head(tmp_path: Path) -> None:
    config = tiny_config(tied=False)
    config.save_pretrained(tmp_path)
    engine = TorchEngine(EngineSettings(device="cpu", threads=1))
    weights = random_weights(config, seed=0)
    engine.load(tmp_path, LABEL, weights)
    before = run(engine, group(PROMPT))
    engine.swap(LABEL, weights | {"lm_head.weight": weights["lm_head.weight"].flip(0)})
    assert run(engine, group(PROMPT)) != before


def test_a_qwen2_with_biases_equals_its_full_forward(tmp_path: Path) -> None:
    config = Qwen2Config(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    config.save_pretrained(tmp_path)
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    state = {name: torch.randn_like(t) * 0.3 for name, t in model.state_dict().items() if name != "lm_head.weight"}
    model.load_state_dict(state, strict=False)
    engine = TorchEngine(EngineSettings(device="cpu", threads=1))
    engine.load(tmp_path, LABEL, state)
    for ids, logprobs in run(engine, group(PROMPT, size=5))["g"]:
        with torch.no_grad():
            rows = torch.log_softmax(model(torch.tensor([PROMPT + ids])).logits[0], dim=-1)[len(PROMPT) - 1 : -1]
        assert torch.allclose(rows.gather(1, torch.tensor(ids)[:, None])[:, 0], torch.tensor(logprobs), atol=1e-5)


def test_layers_without_full_attention_are_refused(tmp_path: Path) -> None:
    config = Qwen2Config(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        use_sliding_window=True,
        sliding_window=4,
        max_window_layers=0,
    )
    config.save_pretrained(tmp_path)
    with pytest.raises(EngineFailed, match="full attention"):
        TorchEngine(EngineSettings(device="cpu", threads=1)).load(tmp_path, LABEL, {})


def test_cancelling_stops_between_two_tokens(engine: TorchEngine) -> None:
    asked = 0

    def cancelled() -> bool:
        nonlocal asked
        asked += 1
        return asked > 5

    assert list(generate(engine, [group(PROMPT, limit=200, stop=())], cancelled)) == []
    assert asked == 6


def test_logits_that_are_not_finite_are_an_error(engine: TorchEngine) -> None:
    weights = random_weights(tiny_config(), seed=0)
    weights["model.norm.weight"] = torch.full((32,), float("nan"), dtype=torch.bfloat16)
    engine.swap(LABEL, weights)
    with pytest.raises(EngineFailed, match="not finite"):
        run(engine, group(PROMPT))


def test_a_config_without_a_model_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "no-such"}')
    with pytest.raises(EngineFailed):
        TorchEngine(EngineSettings(device="cpu", threads=1)).load(tmp_path, LABEL, {})
