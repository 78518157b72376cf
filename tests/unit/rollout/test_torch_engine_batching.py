from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GPTNeoXConfig

from tersely.errors import EngineFailed
from tersely.rollout.engines.base import EngineSettings, GeneratedGroup
from tersely.rollout.engines.torch_engine import TorchEngine
from tersely.testing.engines import LABEL, group, random_weights, run, tiny_config
from tersely.types import PolicyVersion, WeightsLabel
from tersely.v1 import group_pb2

PROMPT = [1, 17, 40, 3, 88, 61, 9]
NEXT = WeightsLabel(PolicyVersion(4), "bb" * 32)
FIRST = group(PROMPT, size=3, limit=14, seed=1, name="first", stop=())
SECOND = group([3, 8, 21], size=2, limit=9, seed=2, name="second", temperature=0.7)
THIRD = group(list(range(20, 50)), size=4, limit=17, seed=3, name="third", greedy=1)


def logprobs_of(ids: list[int], prompt: list[int], seed: int) -> torch.Tensor:
    """Logprobs of sampled ids after a prompt, by one forward pass in float64."""
    config = tiny_config()
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval()
    model.load_state_dict(random_weights(config, seed=seed, dtype=torch.float64), strict=False)
    with torch.no_grad():
        rows = torch.log_softmax(model(torch.tensor([prompt + ids])).logits[0], dim=-1)[len(prompt) - 1 : -1]
    return rows.gather(1, torch.tensor(ids)[:, None])[:, 0].float()


def ids_of(done: GeneratedGroup) -> list[list[int]]:
    return [list(completion.token_ids) for completion in done.completions]


def finish(engine: TorchEngine) -> dict[str, GeneratedGroup]:
    done = {}
    while engine.running:
        done.update({one.prompt.group_id: one for one in engine.step()})
    return done


def test_groups_that_join_and_leave_at_any_step_get_the_tokens_of_each_alone(engine64: TorchEngine) -> None:
    alone = {one.group_id: [ids for ids, _ in run(engine64, one)[one.group_id]] for one in (FIRST, SECOND, THIRD)}
    engine64.admit(FIRST)
    engine64.step()
    engine64.admit(SECOND)
    engine64.step()
    engine64.step()
    engine64.admit(THIRD)
    done = finish(engine64)
    assert {name: ids_of(one) for name, one in done.items()} == alone


def test_a_cancelled_group_leaves_the_others_as_they_were(engine64: TorchEngine) -> None:
    alone = [ids for ids, _ in run(engine64, THIRD)["third"]]
    engine64.admit(FIRST)
    engine64.admit(THIRD)
    engine64.step()
    engine64.cancel("first")
    engine64.cancel("no such group")
    assert engine64.running == 1
    assert {name: ids_of(one) for name, one in finish(engine64).items()} == {"third": alone}


def test_a_prompt_is_prefilled_once_whatever_the_samples(engine: TorchEngine) -> None:
    run(engine, FIRST, THIRD)
    assert engine.tokens_prefilled == len(PROMPT) + 30


def made(model_folder: Path, settings: EngineSettings) -> TorchEngine:
    engine = TorchEngine(settings)
    engine.load(model_folder, LABEL, random_weights(tiny_config(), seed=0))
    return engine


def test_room_is_for_so_many_sequences_and_tokens(model_folder: Path) -> None:
    engine = made(model_folder, EngineSettings("cpu", 1, batch_sequences=5, batch_tokens=100))
    assert engine.has_room(group(PROMPT, size=50, limit=500))
    engine.admit(group(PROMPT, size=3, limit=20, name="a"))  # 7 + 3 * 20 tokens
    assert engine.has_room(group([1, 2, 3], size=2, limit=15))
    assert not engine.has_room(group([1, 2, 3, 4], size=2, limit=15))
    assert not engine.has_room(group([1], size=3, limit=2))
    engine.cancel("a")
    assert engine.has_room(group([1], size=3, limit=2))


def test_a_group_that_may_grow_beyond_the_models_positions_is_refused_at_once(engine: TorchEngine) -> None:
    engine.admit(SECOND)
    with pytest.raises(EngineFailed, match="positions for 256"):
        engine.admit(group(PROMPT, limit=250, name="too long"))
    engine.admit(group(PROMPT, size=1, limit=249, stop=(), name="just fits"))
    done = finish(engine)
    assert len(ids_of(done["just fits"])[0]) == 249


def test_a_bit_exact_group_has_room_only_alone(engine: TorchEngine) -> None:
    exact = group(PROMPT, size=2, exact=True, name="exact")
    engine.admit(SECOND)
    assert not engine.has_room(exact)
    engine.cancel("second")
    assert engine.has_room(exact)
    engine.admit(exact)
    assert not engine.has_room(SECOND)


def test_a_swap_in_flight_makes_caches_again_and_starts_a_span(engine64: TorchEngine) -> None:
    engine64.admit(FIRST)
    for _ in range(4):
        engine64.step()
    engine64.admit(THIRD)
    engine64.swap(NEXT, random_weights(tiny_config(), seed=1))
    done = finish(engine64)
    for completion in done["first"].completions:
        ids = list(completion.token_ids)
        before, after = completion.version_spans
        assert [before.weights, after.weights] == [LABEL.to_proto(), NEXT.to_proto()]
        assert [before.first_token, after.first_token] == [0, before.token_count]
        assert before.token_count + after.token_count == len(ids)
        want = torch.cat(
            (logprobs_of(ids, PROMPT, 0)[: before.token_count], logprobs_of(ids, PROMPT, 1)[before.token_count :])
        )
        assert torch.allclose(torch.tensor(list(completion.behaviour_logprobs)), want, atol=1e-5)
    for completion in done["third"].completions:
        (span,) = completion.version_spans
        assert (span.weights, span.token_count) == (NEXT.to_proto(), len(completion.token_ids))
        want = logprobs_of(list(completion.token_ids), list(range(20, 50)), 1)
        assert torch.allclose(torch.tensor(list(completion.behaviour_logprobs)), want, atol=1e-5)


def test_a_staged_swap_equals_a_plain_one_and_stale_staging_is_not_used(engine: TorchEngine) -> None:
    weights = random_weights(tiny_config(), seed=1)
    engine.swap(NEXT, weights)
    plain = run(engine, FIRST)
    engine.swap(LABEL, random_weights(tiny_config(), seed=0))
    engine.stage(weights)
    assert run(engine, FIRST) != plain
    engine.swap(NEXT, weights)
    assert run(engine, FIRST) == plain
    engine.stage(random_weights(tiny_config(), seed=2))
    engine.swap(NEXT, weights)
    assert run(engine, FIRST) == plain


def test_staging_refuses_weights_that_do_not_fit(engine: TorchEngine) -> None:
    with pytest.raises(EngineFailed):
        engine.stage({"model.norm.weight": torch.zeros(32)})
    with pytest.raises(EngineFailed):
        TorchEngine(EngineSettings("cpu", 1)).stage({})


def test_scores_are_teacher_forced_and_leave_what_runs_alone(engine64: TorchEngine) -> None:
    alone = [ids for ids, _ in run(engine64, FIRST)["first"]]
    engine64.admit(FIRST)
    engine64.step()
    scores = engine64.score(PROMPT)
    assert torch.allclose(torch.tensor(scores), logprobs_of(PROMPT[1:], PROMPT[:1], 0), atol=1e-5)
    assert ids_of(finish(engine64)["first"]) == alone


def test_after_a_failure_nothing_runs_and_good_weights_work_again(engine: TorchEngine) -> None:
    before = run(engine, FIRST)
    weights = random_weights(tiny_config(), seed=0)
    broken = weights | {"model.norm.weight": torch.full((32,), float("nan"), dtype=torch.bfloat16)}
    engine.swap(NEXT, broken)
    engine.admit(FIRST)
    with pytest.raises(EngineFailed, match="not finite"):
        engine.step()
    assert engine.running == 0
    engine.swap(LABEL, weights)
    assert run(engine, FIRST) == before


@pytest.mark.parametrize(
    "empty", [group([]), group(PROMPT, size=0), group(PROMPT, limit=0)], ids=["prompt", "size", "limit"]
)
def test_a_group_that_asks_for_nothing_is_refused(engine: TorchEngine, empty: group_pb2.PromptGroup) -> None:
    with pytest.raises(EngineFailed):
        engine.admit(empty)
    assert engine.running == 0


def test_a_group_that_runs_is_not_admitted_again(engine: TorchEngine) -> None:
    engine.admit(FIRST)
    with pytest.raises(EngineFailed, match="runs already"):
        engine.admit(FIRST)
    assert engine.running == 1


def test_a_model_of_another_kind_runs_through_the_library(tmp_path: Path) -> None:
    config = GPTNeoXConfig(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    config.save_pretrained(tmp_path)
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    engine = TorchEngine(EngineSettings("cpu", 1, lookup_tokens=3))
    engine.load(tmp_path, LABEL, weights)
    asked = group(PROMPT, size=5, name="a")
    for ids, logprobs in run(engine, asked, THIRD)["a"]:
        with torch.no_grad():
            rows = torch.log_softmax(model(torch.tensor([PROMPT + ids])).logits[0], dim=-1)[len(PROMPT) - 1 : -1]
        assert torch.allclose(rows.gather(1, torch.tensor(ids)[:, None])[:, 0], torch.tensor(logprobs), atol=1e-5)
