from __future__ import annotations

import json
import math
import random
from collections import defaultdict
from pathlib import Path

import pytest
import torch

import tersely.trainer.learner as learner_module
from tersely.config.learner import LearnerSection
from tersely.errors import CheckpointInvalid, ConfigValue, ModelInvalid
from tersely.testing.modules import load_module
from tersely.trainer.groups import BatchCounts, TrainingGroup, group_rows
from tersely.trainer.learner import Learner
from tersely.trainer.masters import MasterWeights
from tersely.trainer.schedule import learning_rate
from tersely.types import GroupId

_models = load_module(Path(__file__).with_name("models.py"))
make_model, VOCABULARY = _models.make_model, _models.VOCABULARY


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def make_learner(monkeypatch: pytest.MonkeyPatch):
    def make(architecture: str = "llama", *, weights=None, temperature: float = 1.0, **settings) -> Learner:
        monkeypatch.setattr(learner_module, "load_policy", lambda _: make_model(architecture))
        section = LearnerSection(device="cpu", threads=1, **{"learning_rate": 1e-4, **settings})
        return Learner(
            Path("unused"),
            section,
            temperature=temperature,
            reward_weights=lambda step: weights or {"length": 1.0},
            total_steps=10,
            max_completion_tokens=16,
        )

    return make


def make_group(seed: int, rewards=None) -> TrainingGroup:
    rng = random.Random(seed)
    completions = tuple(
        tuple(rng.randrange(3, VOCABULARY) for _ in range(length)) for length in (rng.randrange(1, 9) for _ in range(4))
    )
    return TrainingGroup(
        group_id=GroupId(f"group-{seed}"),
        prompt_ids=tuple(rng.randrange(3, VOCABULARY) for _ in range(6)),
        completion_ids=completions,
        behaviour_logprobs=tuple(tuple(-4.0 - rng.random() for _ in ids) for ids in completions),
        rewards={"length": tuple(rewards or (rng.random() for _ in completions))},
    )


def weights_of(learner: Learner) -> dict[str, torch.Tensor]:
    tensors, _ = learner.state()
    return {name: tensor for name, tensor in tensors.items() if name.startswith("master/")}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_tokens_with_more_than_average_reward_become_likelier(make_learner) -> None:
    learner = make_learner(learning_rate=3e-3)
    prompt, good, bad = (5, 6, 7), (10, 11, 2), (20, 21, 2)

    def logprob(ids: tuple[int, ...]) -> float:
        sequence = torch.tensor([[*prompt, *ids]])
        table = learner._model(input_ids=sequence, use_cache=False).logits[0, 2:-1].log_softmax(-1)
        return table.gather(-1, torch.tensor(ids)[:, None]).sum().item()

    before = logprob(good), logprob(bad)
    for step in range(1, 6):
        behaviour = tuple(tuple(x) for x in [[logprob(ids) / 3] * 3 for ids in (good, bad)])
        group = TrainingGroup(GroupId("g"), prompt, (good, bad), behaviour, {"length": (1.0, 0.0)})
        learner.train([group], step)
    assert logprob(good) > before[0] + 0.1
    assert logprob(bad) < before[1] - 0.1


def test_the_batch_has_one_token_count_however_it_is_split(make_learner) -> None:
    """Each group alone, scaled by its share of the tokens, adds up to the gradient of the batch."""
    groups = [make_group(1), make_group(2), make_group(3)]
    advantages = [learner_module.batch_advantages([g.rewards], {"length": 1.0})[0] for g in groups]
    tokens = [sum(map(len, g.completion_ids)) for g in groups]
    assert len(set(tokens)) > 1

    def gradient(parts, count: int) -> torch.Tensor:
        learner = make_learner()
        rows = [group_rows(group, values, torch.device("cpu")) for group, values in parts]
        learner._add_gradients(rows, BatchCounts(count, 1), defaultdict(float))
        return torch.cat([p.grad.flatten() for p in learner._model.parameters()])

    pairs = list(zip(groups, advantages, strict=True))
    whole = gradient(pairs, sum(tokens))
    singles = sum(gradient([pair], n) * (n / sum(tokens)) for pair, n in zip(pairs, tokens, strict=True))
    assert ((whole - singles).norm() / whole.norm()).item() < 1e-6
    unweighted = sum(gradient([pair], n) / 3 for pair, n in zip(pairs, tokens, strict=True))
    assert ((whole - unweighted).norm() / whole.norm()).item() > 1e-2


def test_one_step_equals_adamw_on_the_plain_models_gradient(make_learner) -> None:
    """Whole step against a loop over tokens on the unpadded model: rounding, loss, clipping and AdamW together."""
    learner = make_learner("qwen2", learning_rate=1e-2, max_grad_norm=0.05, temperature=0.8, adam_beta2=0.95)
    groups = [make_group(1), make_group(2)]
    model = make_model("qwen2")
    masters = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
    count = sum(len(ids) for group in groups for ids in group.completion_ids)
    loss, mismatch = torch.zeros(()), 0.0
    for group in groups:
        rewards = torch.tensor(group.rewards["length"])
        advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-4)
        for ids, behaviour, advantage in zip(group.completion_ids, group.behaviour_logprobs, advantages, strict=True):
            logits = model(input_ids=torch.tensor([[*group.prompt_ids, *ids]]), use_cache=False).logits[0]
            for place, (token, old) in enumerate(zip(ids, behaviour, strict=True)):
                new = (logits[len(group.prompt_ids) - 1 + place] / 0.8).log_softmax(-1)[token]
                ratio = (new - old).exp()
                loss = loss - torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.28) * advantage) / count
                mismatch += abs(new.item() - old) / count
    loss.backward()
    optimizer_parameters = [torch.nn.Parameter(masters[name]) for name, _ in model.named_parameters()]
    for parameter, mine in zip(optimizer_parameters, model.parameters(), strict=True):
        parameter.grad = mine.grad
    norm = torch.nn.utils.clip_grad_norm_(optimizer_parameters, 0.05)
    torch.optim.AdamW(optimizer_parameters, lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0).step()

    health = learner.train(groups, 1)
    assert health.loss == pytest.approx(loss.item(), rel=1e-4)
    assert health.grad_norm == pytest.approx(norm.item(), rel=1e-4)
    assert health.mismatch == pytest.approx(mismatch, rel=1e-4)
    tokens = {group.group_id: sum(map(len, group.completion_ids)) for group in groups}
    assert {name: pair[1] for name, pair in health.group_mismatch.items()} == tokens
    assert sum(pair[0] for pair in health.group_mismatch.values()) / count == pytest.approx(mismatch, rel=1e-4)
    assert health.trained_tokens == count
    got = weights_of(learner)
    for (name, _), want in zip(model.named_parameters(), optimizer_parameters, strict=True):
        # Adam turns a gradient of almost 0 into a full step of either sign: compare where most weights are.
        close = torch.isclose(got[f"master/{name}"], want.detach(), rtol=1e-3, atol=1e-5)
        assert close.float().mean() > 0.99, name


def test_a_sample_without_reward_is_in_neither_loss_nor_token_count(make_learner) -> None:
    group = make_group(4, rewards=(0.1, None, 0.9, 0.4))
    keep = [0, 2, 3]
    smaller = TrainingGroup(
        group.group_id,
        group.prompt_ids,
        tuple(group.completion_ids[i] for i in keep),
        tuple(group.behaviour_logprobs[i] for i in keep),
        {"length": (0.1, 0.9, 0.4)},
    )
    first, second = make_learner(), make_learner()
    one, two = first.train([group], 1), second.train([smaller], 1)
    assert same(weights_of(first), weights_of(second))
    assert one.trained_tokens == two.trained_tokens == sum(len(group.completion_ids[i]) for i in keep)
    assert one.trained_completions == 3
    assert one.advantages[group.group_id][1] is None


def test_training_from_a_state_goes_on_bit_by_bit(make_learner) -> None:
    calm, before = make_learner(weight_decay=0.1), make_learner(weight_decay=0.1)
    for step in (1, 2):
        calm.train([make_group(step), make_group(step + 10)], step)
        before.train([make_group(step), make_group(step + 10)], step)
    tensors, meta = before.state()
    before.train([make_group(99)], 3)
    resumed = make_learner(weight_decay=0.1)
    resumed.load_state(tensors, json.loads(json.dumps(meta)))
    assert same(resumed.state()[0], tensors)
    for step in (3, 4):
        assert calm.train([make_group(step)], step).loss == resumed.train([make_group(step)], step).loss
    assert same(calm.state()[0], resumed.state()[0])
    assert same(calm.published(), resumed.published())


def test_a_state_from_before_the_first_step_can_be_taken_up(make_learner) -> None:
    fresh, resumed = make_learner(), make_learner()
    resumed.train([make_group(1)], 1)
    resumed.load_state(*fresh.state())
    fresh.train([make_group(2)], 1)
    resumed.train([make_group(2)], 1)
    assert same(fresh.state()[0], resumed.state()[0])


@pytest.mark.parametrize("damage", ["missing", "extra", "shape", "dtype", "meta"])
def test_a_state_of_something_else_is_refused_and_changes_nothing(make_learner, damage: str) -> None:
    learner = make_learner()
    learner.train([make_group(1)], 1)
    tensors, meta = learner.state()
    name = "exp_avg/model.norm.weight"
    broken = dict(tensors)
    if damage == "missing":
        del broken[name]
    elif damage == "extra":
        broken["master/more"] = torch.zeros(1)
    elif damage == "shape":
        broken[name] = torch.zeros(3)
    elif damage == "dtype":
        broken[name] = broken[name].double()
    with pytest.raises(CheckpointInvalid):
        learner.load_state(broken, {} if damage == "meta" else meta)
    assert same(learner.state()[0], tensors)


def test_published_weights_are_bf16_sorted_tied_once_and_what_the_model_runs(make_learner) -> None:
    learner = make_learner("llama")
    learner.train([make_group(1)], 1)
    published = learner.published()
    assert list(published) == sorted(published)
    assert {tensor.dtype for tensor in published.values()} == {torch.bfloat16}
    assert "lm_head.weight" not in published
    assert "lm_head.weight" in make_learner("qwen2").published()
    for name, parameter in learner._model.named_parameters():
        assert torch.equal(parameter, published[name].float())
    published["model.norm.weight"].zero_()
    assert learner.published()["model.norm.weight"].any()


def test_masters_keep_updates_that_bf16_weights_lose() -> None:
    """Steps of 1e-6 on weights near 1: bf16 can't hold a single one; the masters hold all and bf16 follows in time."""
    torch.manual_seed(0)
    model = torch.nn.Linear(64, 64, bias=False)
    torch.nn.init.uniform_(model.weight, 0.5, 1.0)
    naive = model.weight.detach().bfloat16()
    start = naive.clone()
    masters = MasterWeights(model, LearnerSection(learning_rate=1e-6))
    first = masters.published()["weight"]
    direction = torch.randn(64, 64)
    for step in range(1000):
        model.weight.grad = direction.clone()
        masters.step(1e-6)
        naive -= (1e-6 * direction.sign()).bfloat16()
        if step == 0:
            one = masters.state()[0]["master/weight"]
    torch.manual_seed(0)
    original = torch.nn.Linear(64, 64, bias=False)
    torch.nn.init.uniform_(original.weight, 0.5, 1.0)
    assert (one != original.weight).float().mean() > 0.9
    assert torch.equal(naive, start)
    # 1000 steps sum up to a quarter of the distance between neighbouring bf16 values.
    assert (masters.published()["weight"] != first).float().mean() > 0.2


def test_two_learners_give_the_same_bytes(make_learner) -> None:
    first, second = make_learner(), make_learner()
    for step in (1, 2):
        first.train([make_group(step)], step)
        second.train([make_group(step)], step)
    assert same(first.published(), second.published())
    assert same(first.state()[0], second.state()[0])


def test_shared_padded_and_recomputed_steps_agree(make_learner) -> None:
    learners = [make_learner(), make_learner(shared_prompt=False), make_learner(recompute=True)]
    norms = [learner.train([make_group(1), make_group(2)], 1).grad_norm for learner in learners]
    assert norms[1] == pytest.approx(norms[0], rel=1e-5)
    assert norms[2] == pytest.approx(norms[0], rel=1e-5)


def test_health_is_plain_numbers(make_learner) -> None:
    health = make_learner().train([make_group(1)], 1)
    assert 0 < health.entropy < math.log(VOCABULARY)
    assert 0 <= health.clip_share <= 1
    assert health.mismatch > 0
    assert health.seconds.keys() == {"forward", "backward", "optimizer"}
    json.dumps([health.loss, health.grad_norm, health.learning_rate, health.advantages, health.seconds])


def test_a_gradient_that_is_not_finite_leaves_the_weights_alone(make_learner) -> None:
    learner = make_learner()
    before = learner.state()[0]
    with torch.no_grad():
        learner._model.model.norm.weight[0] = float("nan")
    with pytest.raises(ModelInvalid, match="not finite"):
        learner.train([make_group(1)], 1)
    assert same(learner.state()[0], before)


def test_batches_that_do_not_fit_are_refused(make_learner) -> None:
    learner = make_learner()
    good = make_group(1)
    cut = TrainingGroup(
        good.group_id, good.prompt_ids, good.completion_ids, (good.behaviour_logprobs[0][:-1],) * 4, good.rewards
    )
    with pytest.raises(ValueError, match="logprobs"):
        learner.train([cut], 1)
    with pytest.raises(ValueError, match="no sample"):
        learner.train([make_group(1, rewards=(None, None, 1.0, None))], 1)


def test_a_device_that_is_not_there_is_refused() -> None:
    missing = "mps" if not torch.backends.mps.is_available() else "cuda"
    with pytest.raises(ConfigValue, match=missing):
        learner_module.choose_device(missing, "learner.device")


@pytest.mark.parametrize(
    ("schedule", "want"),
    [
        ("constant", [0.5, 1, 1, 1, 1, 1]),
        ("linear", [0.5, 1, 1, 0.7, 0.4, 0.1]),
        ("cosine", [0.5, 1, 1, 0.775, 0.325, 0.1]),
    ],
)
def test_the_learning_rate_rises_then_follows_its_schedule_to_the_last_step(schedule, want) -> None:
    section = LearnerSection(learning_rate=2e-5, warmup_steps=2, schedule=schedule, final_learning_rate_ratio=0.1)
    rates = [learning_rate(section, step, 6) / 2e-5 for step in range(1, 7)]
    assert rates == pytest.approx(want)
