"""What a plan is made of: facts of a model, parts of a group, formulas of memory, settings that fit."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from torch.autograd.graph import saved_tensors_hooks

from tersely.config import Recipe
from tersely.errors import ConfigValue, PlanDoesNotFit
from tersely.models.load import load_policy
from tersely.models.tiny import make_tiny_model, tiny_text
from tersely.trainer.forward import ForwardSettings, padded_logprobs, prompt_states, shared_logprobs
from tersely.trainer.planning.facts import ModelFacts, read_facts
from tersely.trainer.planning.machine import assumed_speed
from tersely.trainer.planning.memory import activation_bytes
from tersely.trainer.planning.plan import Plan, Setting, make_plan
from tersely.trainer.planning.timing import overhead_seconds, step_seconds
from tersely.trainer.planning.tool import run_plan
from tersely.trainer.planning.workload import Part, Prompts, make_workload

PROMPTS = Prompts(longest=100, mean=80.0, looked_at=4)
CPU = assumed_speed("cpu", 2)


def recipe(**sections: object) -> Recipe:
    return Recipe.model_validate(sections)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def facts(folder: Path) -> ModelFacts:
    return read_facts(folder)


@pytest.fixture(scope="module")
def large(facts: ModelFacts) -> ModelFacts:
    """As large as SmolLM2-135M."""
    sizes = {"q": (576, 576), "k": (192, 576), "v": (192, 576), "o": (576, 576)}
    mlp = {"gate": (1536, 576), "up": (1536, 576), "down": (576, 1536)}
    linear = {f"model.layers.{i}.{name}_proj.weight": size for i in range(30) for name, size in (sizes | mlp).items()}
    return replace(
        facts,
        parameters=134_515_008,
        largest=49152 * 576,
        linear_sizes=linear,
        layers=30,
        hidden=576,
        intermediate=1536,
        heads=9,
        key_value_heads=3,
        head_size=64,
        vocabulary=49152,
        tied=True,
    )


def plan(recipe: Recipe, facts: ModelFacts, *, device: str = "cpu", gib: float = 1000.0) -> Plan:
    setting = Setting(device, device, {"cpu": round(gib * 2**30)}, CPU, CPU, cores=2)
    return make_plan(recipe, facts, PROMPTS, setting)


def test_facts_are_those_of_the_loaded_model(folder: Path, facts: ModelFacts) -> None:
    model = load_policy(folder)
    assert facts.parameters == sum(p.numel() for p in model.parameters())
    assert facts.decoder_parameters == sum(
        p.numel() for name, p in model.named_parameters() if ".layers." in name and p.dim() == 2
    )
    assert (facts.layers, facts.context, facts.padded_reason, facts.unlike_full_attention) == (2, 4096, None, ())


def test_a_model_with_other_state_is_padded_and_refused_by_the_torch_engine(tmp_path: Path, folder: Path) -> None:
    config = transformers.Lfm2Config(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        layer_types=["conv", "full_attention"],
    )
    transformers.Lfm2ForCausalLM(config).save_pretrained(tmp_path)
    other = read_facts(tmp_path)
    assert other.padded_reason is not None
    assert other.unlike_full_attention == ("conv",)
    found = plan(recipe(), other)
    assert found.as_json()["forward"]["way"] == "padded"
    assert any("Padded forward" in remark for remark in found.remarks())
    for file in folder.glob("*token*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    for file in folder.glob("*.jinja"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "recipe.toml").write_text(f'[model]\nname = "{tmp_path}"\n')
    with pytest.raises(ConfigValue, match=r"model\.name.*conv"):
        run_plan(tmp_path / "recipe.toml", measure=False)


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
@pytest.mark.parametrize("way", ["prompt", "part on a prompt", "padded"])
def test_activations_are_what_autograd_saves(tmp_path: Path, architecture: str, way: str) -> None:
    folder = make_tiny_model(tmp_path, architecture="llama" if architecture == "llama" else "qwen2")
    model, facts = load_policy(folder), read_facts(folder)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    prompt, rows, tokens = torch.arange(60) + 3, 5, 21
    completion = torch.arange(rows * tokens).view(rows, tokens) + 3
    lengths, settings = [tokens] * rows, ForwardSettings()
    leaves = [state.detach().requires_grad_() for state in prompt_states(model, prompt, settings)]
    own |= {leaf.untyped_storage().data_ptr() for leaf in leaves}
    saved: dict[int, int] = {}
    alive = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        alive.append(tensor)
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        if way == "prompt":
            part, result = Part(1, 60, 0, 0), prompt_states(model, prompt, settings)
        elif way == "padded":
            part = Part(rows, 60 + tokens - 1, 0, rows * tokens)
            result = padded_logprobs(model, prompt, completion, lengths, range(rows), settings)
        else:
            part = Part(rows, tokens - 1, 60, rows * tokens)
            result = shared_logprobs(model, leaves, completion, lengths, range(rows), settings)
    assert result is not None
    chunk = 0 if way == "prompt" else rows * tokens * facts.vocabulary * 4  # counted with the head
    assert activation_bytes(part, facts, autocast=False) == pytest.approx(sum(saved.values()) - chunk, rel=0.05)


def test_memory_grows_with_what_it_is_made_of(large: ModelFacts) -> None:
    base = plan(recipe(), large).peak_memory_bytes
    assert plan(recipe(run={"group_size": 16}), large).peak_memory_bytes > base
    assert plan(recipe(learner={"shared_prompt": False}), large).peak_memory_bytes > 1.1 * base
    assert plan(recipe(learner={"kl_coefficient": 0.1}), large).peak_memory_bytes > base + 4 * large.parameters
    assert plan(recipe(learner={"micro_batch_tokens": 400}), large).peak_memory_bytes < base
    assert plan(recipe(learner={"logit_chunk_tokens": 32}), large).peak_memory_bytes < base
    adapters = plan(recipe(learner={"lora": {"rank": 8}}), large)
    assert adapters.peak_memory_bytes < base - 12 * large.parameters
    assert adapters.as_json()["disk"]["checkpoint_bytes"] < 0.1 * 12 * large.parameters


def test_smaller_parts_hold_fewer_positions_and_are_more(large: ModelFacts) -> None:
    whole = make_workload(recipe(run={"group_size": 16}, learner={"micro_batch_tokens": 8192}), large, PROMPTS)
    cut = make_workload(recipe(run={"group_size": 16}, learner={"micro_batch_tokens": 500}), large, PROMPTS)
    assert (len(whole.worst_parts), whole.worst_parts[0].rows, whole.worst_parts[0].width) == (1, 16, 127)
    assert len(cut.worst_parts) > 1
    assert all(part.context + part.rows * part.width <= 500 for part in cut.worst_parts)
    assert sum(part.tokens for part in cut.worst_parts) == 16 * 128


def test_time_grows_with_work_and_shrinks_with_workers(large: ModelFacts) -> None:
    def seconds(**sections: object) -> dict[str, float]:
        made = recipe(**sections)
        work = make_workload(made, large, PROMPTS)
        return step_seconds(made, large, work, device="cpu", learner=CPU, worker=CPU, cores=4)

    base = seconds(rollout={"threads": 1})
    assert all(value > 0 for value in base.values())
    assert seconds(run={"groups_per_step": 8}, rollout={"threads": 1})["learn"] == pytest.approx(
        2 * base["learn"], rel=0.2
    )
    assert seconds(rollout={"threads": 1, "workers": 2})["rollout"] == pytest.approx(base["rollout"] / 2)
    assert seconds(learner={"shared_prompt": False})["learn"] > 1.5 * base["learn"]
    assert seconds(learner={"recompute": True})["learn"] > base["learn"]


def test_a_tiny_model_is_not_thought_to_be_free(facts: ModelFacts, large: ModelFacts) -> None:
    # As in recipes/tiny.toml, whose steps took 0.3 s on a quiet machine with two cores.
    made = recipe(run={"groups_per_step": 4}, length={"target_tokens": 16}, rollout={"threads": 1})
    small, big = plan(made, facts).as_json(), plan(made, large).as_json()
    assert 0.15 < small["seconds_per_step"] < 0.6
    assert small["seconds"]["publish"] >= 0.005
    assert any("overhead" in remark for remark in small["remarks"])
    assert not any("overhead" in remark for remark in big["remarks"])


def test_a_plan_says_that_it_counts_one_process_where_there_may_be_several(facts: ModelFacts) -> None:
    several = plan(recipe(learner={"parallel": "fsdp"}), facts).remarks()
    assert any("one process" in remark and "fsdp" in remark for remark in several)
    assert not any("one process" in remark for remark in plan(recipe(), facts).remarks())


def test_overhead_grows_with_layers_parts_and_decoding_steps(large: ModelFacts) -> None:
    def overhead(facts: ModelFacts = large, **sections: object) -> dict[str, float]:
        made = recipe(**sections)
        return overhead_seconds(made, facts, make_workload(made, facts, PROMPTS), device="cpu", cores=4)

    base = overhead()
    assert overhead(replace(large, layers=60))["learn"] == pytest.approx(2 * base["learn"])
    assert overhead(learner={"optimizer_steps_per_batch": 3})["learn"] == pytest.approx(3 * base["learn"])
    assert overhead(learner={"micro_batch_tokens": 200})["learn"] > 2 * base["learn"]
    assert overhead(length={"target_tokens": 128})["rollout"] > 1.5 * base["rollout"]


def test_on_an_accelerator_the_snapshots_stay_on_the_host(large: ModelFacts) -> None:
    found = plan(recipe(), large, device="cuda").as_json()
    parts = {(node["node"], node["device"]): node["memory"] for node in found["nodes"]}
    assert "snapshots" not in parts["trainer", "cuda"]
    assert parts["trainer", "cpu"]["snapshots"] > 0
    assert "moments" not in parts["trainer", "cpu"]
    assert found["devices"]["cuda"]["memory_bytes"] is None


@pytest.mark.parametrize(
    ("rpc", "prompts", "held"),
    [
        ({}, 8, 4),
        ({"snapshots": 8}, 0, 8),
        ({"snapshots": 8, "snapshot_bytes": 3.5}, 0, 3),
        ({"snapshot_bytes": 0}, 8, 2),
        ({"host": "0.0.0.0", "insecure_lan": True}, 8, 6),
    ],
)
def test_snapshots_are_as_many_as_the_recipe_lets_the_trainer_keep(
    large: ModelFacts, rpc: dict[str, float], prompts: int, held: int
) -> None:
    size = 2 * large.parameters
    if "snapshot_bytes" in rpc:
        rpc = {**rpc, "snapshot_bytes": int(rpc["snapshot_bytes"] * size)}
    found = plan(recipe(rpc=rpc, evaluation={"prompts": prompts}), large, device="cpu").as_json()
    (trainer,) = (node["memory"] for node in found["nodes"] if node["node"] == "trainer")
    assert trainer["snapshots"] == held * size


def test_with_adapters_their_base_is_kept_and_each_version_has_its_own(large: ModelFacts) -> None:
    found = plan(recipe(evaluation={"prompts": 0}, learner={"lora": {"rank": 8}}), large, device="cpu").as_json()
    (trainer,) = (node["memory"] for node in found["nodes"] if node["node"] == "trainer")
    assert trainer["snapshots"] == 4 * 2 * large.parameters
    assert trainer["adapters"] == 4 * trainer["masters"]


def write_recipe(folder: Path, model: Path, text: str) -> Path:
    rows = [{"id": str(i), "document": tiny_text()[i * 200 :][:800], "summary": "short"} for i in range(4)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = folder / "recipe.toml"
    file.write_text(f'[model]\nname = "{model}"\n[data]\nsource = "./train.jsonl"\n{text}')
    return file


@pytest.mark.parametrize(("gib", "size"), [(1.3, 64), (1.2, 32), (1.6, 128)])
def test_the_settings_that_are_suggested_really_fit(tmp_path: Path, folder: Path, gib: float, size: int) -> None:
    text = f"[run]\ngroup_size = {size}\n[length]\ntarget_tokens = 500\n[learner]\nmicro_batch_tokens = 200000\n"
    file = write_recipe(tmp_path, folder, text)
    with pytest.raises(PlanDoesNotFit) as caught:
        run_plan(file, memory_gib=gib, measure=False)
    assert "on cpu" in caught.value.message
    assert "--set " in caught.value.way_out
    words = caught.value.way_out.split()
    items = [word for before, word in itertools.pairwise(words) if before == "--set"]
    found = run_plan(file, items, memory_gib=gib, measure=False)
    assert found["devices"]["cpu"]["needed_bytes"] <= 0.95 * gib * 2**30


def test_data_out_of_reach_are_taken_as_long_as_the_recipe_allows(tmp_path: Path, folder: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text(f'[model]\nname = "{folder}"\n[data]\nsource = "nobody/nothing"\nmax_document_tokens = 300\n')
    found = run_plan(file, ["evaluation.prompts=0"], measure=False)
    assert found["settings"]["prompts_looked_at"] == 0
    assert found["settings"]["longest_prompt_tokens"] > 300
    assert any("can't be reached" in remark for remark in found["remarks"])
