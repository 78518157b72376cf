from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import save_file

import tersely.trainer.learner as learner_module
from tersely.config.learner import LearnerSection, LoraSection
from tersely.errors import CheckpointInvalid, ModelInvalid
from tersely.testing.modules import load_module
from tersely.trainer.forward import ForwardSettings, completion_logprobs_padded
from tersely.trainer.groups import TrainingGroup
from tersely.trainer.learner import Learner
from tersely.trainer.lora import MergedLinear, add_adapters
from tersely.types import GroupId

_models = load_module(Path(__file__).with_name("models.py"))
make_model, VOCABULARY = _models.make_model, _models.VOCABULARY

LORA = LoraSection(rank=4, alpha=8)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def make_learner(monkeypatch: pytest.MonkeyPatch):
    def make(architecture: str = "llama", *, lora: LoraSection = LORA, **settings) -> Learner:
        monkeypatch.setattr(learner_module, "load_policy", lambda _: make_model(architecture))
        section = LearnerSection(device="cpu", threads=1, lora=lora, **{"learning_rate": 1e-2, **settings})
        return Learner(
            Path("unused"),
            section,
            temperature=1.0,
            reward_weights=lambda _: {"length": 1.0},
            total_steps=10,
            max_completion_tokens=16,
        )

    return make


def make_group(seed: int) -> TrainingGroup:
    rng = random.Random(seed)
    completions = tuple(tuple(rng.randrange(3, VOCABULARY) for _ in range(rng.randrange(1, 9))) for _ in range(4))
    return TrainingGroup(
        group_id=GroupId(f"group-{seed}"),
        prompt_ids=tuple(rng.randrange(3, VOCABULARY) for _ in range(6)),
        completion_ids=completions,
        behaviour_logprobs=tuple(tuple(-4.0 - rng.random() for _ in ids) for ids in completions),
        rewards={"length": tuple(rng.random() for _ in completions)},
    )


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def sampler(architecture: str, weights: dict[str, torch.Tensor]) -> torch.nn.Module:
    """A plain model that knows nothing of adapters, with the published weights."""
    model = make_model(architecture)
    for name, parameter in model.named_parameters():
        parameter.data = weights[name].float()
    return model


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_the_first_published_weights_are_those_of_the_base_model(make_learner, architecture: str) -> None:
    published = make_learner(architecture).published()
    base = {name: p.detach().bfloat16() for name, p in make_model(architecture).named_parameters()}
    assert list(published) == sorted(base)
    assert same(published, base)


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_samples_of_the_published_weights_have_no_mismatch(make_learner, architecture: str) -> None:
    """A plain model with what is published gives the very log-probabilities that the learner's forward pass has."""
    learner = make_learner(architecture, shared_prompt=False)
    for step in (1, 2, 3):
        learner.train([make_group(step)], step)
    group = make_group(9)
    model = sampler(architecture, learner.published())
    learner_module.use_fast_linears(model)
    rows = []
    for ids in group.completion_ids:
        with torch.no_grad():
            prompt, completion = torch.tensor(group.prompt_ids), torch.tensor(ids)[None]
            result = completion_logprobs_padded(model, prompt, completion, [len(ids)], ForwardSettings())
        rows.append(tuple(result.logprobs[0].tolist()))
    health = learner.train([replace(group, behaviour_logprobs=tuple(rows))], 4)
    assert health.mismatch < 1e-6
    assert not same(learner.published(), make_learner(architecture).published())


def test_gradients_of_a_and_b_are_those_through_the_merged_weight() -> None:
    """Autograd on W0 + scale B A, in float64 and without rounding, against the straight-through pass."""
    torch.manual_seed(0)
    model = make_model("llama", torch.float64)
    plain = make_model("llama", torch.float64)
    add_adapters(model, LORA)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, VOCABULARY, (3, 12), generator=generator)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, MergedLinear)}
    assert len(layers) == 14
    merged, leaves = {}, {}
    for name, layer in layers.items():
        down, up = layer.factors
        down.data = torch.randn(down.shape, generator=generator, dtype=torch.float64) / 8
        up.data = torch.randn(up.shape, generator=generator, dtype=torch.float64) / 8
        leaves[name] = (down.detach().clone().requires_grad_(), up.detach().clone().requires_grad_())
        weight = plain.get_submodule(name).weight.detach() + 2.0 * leaves[name][1] @ leaves[name][0]
        merged[f"{name}.weight"] = weight
        layer.base_layer.weight.data = weight.detach().clone()
    want = torch.func.functional_call(plain, merged, kwargs={"input_ids": ids}).logits
    outer = torch.randn(want.shape, generator=generator, dtype=torch.float64)
    (want * outer).sum().backward()
    got = model(input_ids=ids).logits
    (got * outer).sum().backward()
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)
    for name, layer in layers.items():
        for mine, theirs in zip(layer.factors, leaves[name], strict=True):
            torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-9, atol=1e-10)
    assert all(p.grad is None for n, p in model.named_parameters() if "lora" not in n)


def test_only_the_factors_are_trained_and_kept(make_learner) -> None:
    learner = make_learner()
    learner.train([make_group(1)], 1)
    tensors, _ = learner.state()
    assert {name.partition("/")[2].rpartition(".lora_")[2] for name in tensors} == {"A.weight", "B.weight"}
    whole = sum(p.numel() for p in make_model("llama").parameters())
    assert sum(t.numel() for t in tensors.values() if t.dim()) < 3 * whole
    base = make_learner().published()
    published = learner.published()
    assert not torch.equal(published["model.layers.1.mlp.up_proj.weight"], base["model.layers.1.mlp.up_proj.weight"])
    assert torch.equal(published["model.embed_tokens.weight"], base["model.embed_tokens.weight"])
    assert torch.equal(published["model.norm.weight"], base["model.norm.weight"])


def test_training_goes_on_from_a_state_bit_by_bit(make_learner) -> None:
    calm, before, resumed = make_learner(), make_learner(), make_learner()
    for step in (1, 2):
        calm.train([make_group(step)], step)
        before.train([make_group(step)], step)
    tensors, meta = before.state()
    resumed.train([make_group(50)], 1)
    resumed.load_state(tensors, json.loads(json.dumps(meta)))
    assert same(resumed.state()[0], tensors)
    assert same(resumed.published(), before.published())
    for step in (3, 4):
        calm.train([make_group(step)], step)
        resumed.train([make_group(step)], step)
    assert same(calm.state()[0], resumed.state()[0])
    assert same(calm.published(), resumed.published())


def test_a_state_of_all_weights_is_no_state_of_adapters(make_learner) -> None:
    learner = make_learner()
    with pytest.raises(CheckpointInvalid):
        learner.load_state(*make_learner(lora=None).state())


@pytest.mark.parametrize("shared", [True, False])
def test_adapters_on_one_layer_kind_alone_can_be_trained(make_learner, shared: bool) -> None:
    """With q_proj alone the first layer's keys and values have no gradient."""
    learner = make_learner(lora=LoraSection(rank=2, alpha=2, targets=("q_proj",)), shared_prompt=shared)
    assert learner.train([make_group(1)], 1).grad_norm > 0


def test_shared_padded_and_small_parts_agree(make_learner) -> None:
    learners = [
        make_learner(),
        make_learner(shared_prompt=False),
        make_learner(recompute=True),
        make_learner(micro_batch_tokens=64),
    ]
    groups = [make_group(1), make_group(2)]
    for step in (1, 2):  # B is 0 at first, and so is the gradient of A
        norms = [learner.train(groups, step).grad_norm for learner in learners]
        assert norms[1:] == pytest.approx(norms[:1] * 3, rel=1e-3)


def test_kl_is_measured_from_the_base_weights_with_no_second_model(make_learner, monkeypatch) -> None:
    learner = make_learner(kl_coefficient=0.1)
    assert learner._reference._copy is None
    assert learner.train([make_group(1)], 1).kl == 0.0
    for step in range(2, 5):
        learner.train([make_group(1)], step)
    before = learner.published()
    health = learner.train([make_group(1)], 5)
    assert health.kl > 1e-4
    assert not same(learner.published(), before)
    # After a resume it is still the base model.
    resumed = make_learner(kl_coefficient=0.1)
    resumed.load_state(*learner.state())
    assert resumed.train([make_group(7)], 6).kl == learner.train([make_group(7)], 6).kl


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_the_adapter_can_be_read_by_peft(make_learner, tmp_path: Path) -> None:
    learner = make_learner()
    for step in (1, 2, 3):
        learner.train([make_group(step)], step)
    config, tensors = learner.adapter()
    (tmp_path / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    base = make_model("llama")
    base.load_state_dict({name: p.bfloat16().float() for name, p in base.state_dict().items()})
    start = {name: p.detach().clone() for name, p in base.named_parameters()}
    merged = peft.PeftModel.from_pretrained(base, tmp_path).merge_and_unload()
    published = learner.published()
    for name, parameter in merged.named_parameters():
        # peft adds up in fp32, we in float64: a value in thousands is rounded to the other neighbour.
        assert torch.allclose(parameter, published[name].float(), rtol=2**-8, atol=1e-6), name
        assert (parameter.bfloat16() != published[name]).sum() <= parameter.numel() // 500, name
    assert any(not torch.equal(start[name], p.float()) for name, p in published.items())


def test_all_weights_have_no_adapter(make_learner) -> None:
    assert make_learner(lora=None).adapter() is None


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (("c_attn",), "c_attn"),
        (("lm_head",), "output head"),
        (("embed_tokens",), "Embedding"),
        (("self_attn",), "Attention"),
    ],
)
def test_targets_that_do_not_fit_are_refused_with_the_setting(make_learner, targets, words: str) -> None:
    with pytest.raises(ModelInvalid, match=words) as caught:
        make_learner("qwen2", lora=LoraSection(targets=targets))
    assert "learner.lora.targets" in f"{caught.value} {caught.value.way_out}"


def test_adapters_start_from_the_same_draw_whatever_was_drawn_before(make_learner) -> None:
    first = make_learner().state()[0]
    torch.manual_seed(99)
    torch.rand(7)
    assert same(make_learner().state()[0], first)
    model = make_model("llama")
    state = torch.random.get_rng_state()
    add_adapters(model, LORA)
    assert torch.equal(torch.random.get_rng_state(), state)
