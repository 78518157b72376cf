from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from structlog.testing import capture_logs

from tersely.grpo import LossInputs, policy_loss
from tersely.testing.modules import load_module
from tersely.trainer.groups import TrainingGroup

_learners = load_module(Path(__file__).with_name("learners.py"))
make_learner, make_group, make_model = _learners.make_learner, _learners.make_group, _learners.make_model
masters_of, same, LIMIT, STOP = _learners.masters_of, _learners.same, _learners.LIMIT, _learners.STOP


pytestmark = pytest.mark.usefixtures("one_thread")


def plain_logprobs(model, group: TrainingGroup) -> torch.Tensor:
    """[G, C] by the model as Transformers runs it, row by row."""
    rows = []
    for ids in group.completion_ids:
        logits = model(input_ids=torch.tensor([[*group.prompt_ids, *ids]]), use_cache=False).logits[0]
        table = (logits[len(group.prompt_ids) - 1 : -1] / 0.8).log_softmax(-1)
        rows.append(table.gather(-1, torch.tensor(ids)[:, None])[:, 0])
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def plain_training(groups, *, steps: int, **settings) -> tuple[dict[str, torch.Tensor], list[float]]:
    """fp32 masters after `steps` passes, and the norm of each gradient: the whole batch in one piece each time."""
    model, reference = make_model("llama"), make_model("llama")
    masters = {name: torch.nn.Parameter(p.detach().clone()) for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(masters.values(), lr=1e-3, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.0)

    def publish() -> None:
        for name, parameter in model.named_parameters():
            parameter.data.copy_(masters[name].data.bfloat16())

    publish()
    reference.load_state_dict(model.state_dict())
    samples = [ids for group in groups for ids in group.completion_ids]
    width = max(map(len, samples))

    def pad(rows) -> torch.Tensor:
        return torch.tensor([[*row, *[0.0] * (width - len(row))] for row in rows])

    def table(one) -> torch.Tensor:
        parts = [plain_logprobs(one, group) for group in groups]
        return torch.cat([torch.nn.functional.pad(part, (0, width - part.shape[1])) for part in parts])

    rewards = [torch.tensor(group.rewards["length"]) for group in groups]
    advantages = torch.cat([(r - r.mean()) / (r.std() + 1e-4) for r in rewards])
    mask = torch.arange(width) < torch.tensor([len(ids) for ids in samples])[:, None]
    with torch.no_grad():
        start, fixed = table(model), table(reference)
    norms = []
    for _ in range(steps):
        loss = policy_loss(
            LossInputs(
                table(model),
                pad([logprobs for group in groups for logprobs in group.behaviour_logprobs]),
                mask,
                advantages,
                start_logprobs=start,
                reference_logprobs=fixed,
                max_completion_tokens=LIMIT,
                **settings,
            )
        ).loss
        model.zero_grad()
        loss.backward()
        for name, parameter in model.named_parameters():
            masters[name].grad = parameter.grad.clone()
        norms.append(torch.nn.utils.clip_grad_norm_(masters.values(), 1.0).item())
        optimizer.step()
        publish()
    return {name: master.detach() for name, master in masters.items()}, norms


@pytest.mark.parametrize(
    "settings",
    [
        {"loss": "grpo"},
        {"loss": "dr_grpo", "correction": "tis"},
        {"loss": "gspo", "clip_low": 0.5, "clip_high": 30.0},
        {"loss": "cispo", "correction": "mask", "correction_cap": 40.0},
        {"loss": "dapo", "correction": "tis", "correction_cap": 50.0, "kl_coefficient": 0.5},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
@pytest.mark.parametrize("steps", [1, 3])
def test_passes_over_a_batch_equal_the_batch_in_one_piece_on_the_plain_model(monkeypatch, settings, steps) -> None:
    """Counts over the batch, start and reference log-probabilities, micro-batches and optimizer steps together."""
    groups = [make_group(1), make_group(2), make_group(3)]
    want, norms = plain_training(groups, steps=steps, **settings)
    learner = make_learner(monkeypatch, optimizer_steps_per_batch=steps, micro_batch_tokens=64, **settings)
    before = masters_of(learner)
    health = learner.train(groups, 1)
    assert health.grad_norm == pytest.approx(sum(norms) / steps, rel=1e-3)
    assert health.optimizer_steps == steps
    moved = torch.cat([(want[name] - before[name]).flatten() for name in want])
    mine = torch.cat([(masters_of(learner)[name] - before[name]).flatten() for name in want])
    # Adam turns a gradient of almost 0 into a full step of either sign.
    assert ((mine - moved).norm() / moved.norm()).item() < 0.03


@pytest.mark.parametrize("shared", [True, False])
def test_micro_batches_change_a_step_by_rounding_alone(monkeypatch, shared: bool) -> None:
    group = make_group(5, lengths=[40, 3, 40, 1, 22, 40])
    whole = make_learner(monkeypatch, shared_prompt=shared)
    parts = make_learner(monkeypatch, shared_prompt=shared, micro_batch_tokens=64)
    one, many = whole.train([group], 1), parts.train([group], 1)
    assert many.micro_batches > one.micro_batches
    assert many.grad_norm == pytest.approx(one.grad_norm, rel=1e-5)
    assert many.loss == pytest.approx(one.loss, abs=1e-6)
    assert many.entropy == pytest.approx(one.entropy, rel=1e-6)


def test_two_learners_with_small_parts_give_the_same_bytes(monkeypatch) -> None:
    settings = {"micro_batch_tokens": 64, "optimizer_steps_per_batch": 2, "correction": "tis", "kl_coefficient": 0.1}
    first, second = (make_learner(monkeypatch, **settings) for _ in range(2))
    for step in (1, 2):
        groups = [make_group(step, lengths=[40, 3, 40, 1]), make_group(step + 10)]
        assert first.train(groups, step).loss == second.train(groups, step).loss
    assert same(first.state()[0], second.state()[0])


def test_empty_completions_are_in_neither_loss_nor_counts(monkeypatch) -> None:
    group = make_group(6, lengths=[4, 7, 3, 5])
    empty = replace(
        group,
        completion_ids=(*group.completion_ids[:3], ()),
        behaviour_logprobs=(*group.behaviour_logprobs[:3], ()),
    )
    health = make_learner(monkeypatch, loss="grpo").train([empty], 1)
    assert health.trained_completions == 3
    assert health.trained_tokens == 14
    assert math.isfinite(health.grad_norm)


def test_the_weights_of_the_rewards_are_those_of_the_step(monkeypatch) -> None:
    stages = {1: {"length": 1.0}, 2: {"length": 0.0, "rouge_l": 1.0}}
    staged = make_learner(monkeypatch, weights=stages.__getitem__)
    group = make_group(7)
    first, second = staged.train([group], 1), staged.train([group], 2)
    only = replace(group, rewards={"length": group.rewards["rouge_l"]})
    assert first.advantages == make_learner(monkeypatch).train([group], 1).advantages
    assert second.advantages == make_learner(monkeypatch).train([only], 1).advantages


def test_a_reference_is_loaded_only_for_a_kl_coefficient_and_stays_the_initial_policy(monkeypatch) -> None:
    assert make_learner(monkeypatch).models_loaded == 1
    learner = make_learner(monkeypatch, kl_coefficient=0.1)
    assert learner.models_loaded == 2
    assert learner.train([make_group(1)], 1).kl == 0.0
    for step in (2, 3, 4):
        learner.train([make_group(step)], step)
    resumed = make_learner(monkeypatch, kl_coefficient=0.1)
    resumed.load_state(*learner.state())
    one, two = learner.train([make_group(9)], 5), resumed.train([make_group(9)], 5)
    assert one.kl == two.kl > 1e-4
    assert make_learner(monkeypatch).train([make_group(1)], 1).kl is None


def test_a_greater_kl_coefficient_keeps_the_policy_closer_to_where_it_began(monkeypatch) -> None:
    kl = {}
    for coefficient in (1e-9, 20.0):
        learner = make_learner(monkeypatch, kl_coefficient=coefficient, learning_rate=3e-3)
        for step in range(1, 9):
            health = learner.train([make_group(1)], step)
        kl[coefficient] = health.kl
    assert kl[20.0] < 0.5 * kl[1e-9]


def test_health_tells_first_and_last_pass_apart(monkeypatch) -> None:
    group = make_group(1)
    one = make_learner(monkeypatch).train([group], 1)
    many = make_learner(monkeypatch, optimizer_steps_per_batch=3).train([group], 1)
    for figure in ("loss", "entropy", "mismatch", "logprob", "trained_tokens", "trained_completions"):
        assert getattr(many, figure) == getattr(one, figure), figure
    assert one.last_logprob == one.logprob
    assert many.last_logprob != many.logprob
    assert one.correction_mean == 1.0
    assert one.masked_share == 0.0
    assert one.ratio_max >= one.ratio_mean > 0
    masked = make_learner(monkeypatch, correction="mask", correction_cap=1.01).train([group], 1)
    assert masked.masked_share > 0


def test_fresh_samples_have_a_ratio_of_one(monkeypatch) -> None:
    learner = make_learner(monkeypatch)
    group = make_group(3)
    table = plain_logprobs(learner._model, group).detach()
    fresh = tuple(tuple(row[: len(ids)].tolist()) for row, ids in zip(table, group.completion_ids, strict=True))
    health = learner.train([replace(group, behaviour_logprobs=fresh)], 1)
    assert health.mismatch < 1e-5
    assert health.ratio_mean == pytest.approx(1, abs=1e-5)
    assert health.clip_share == 0


def test_every_ablation_is_announced_as_a_warning(monkeypatch) -> None:
    names = ("bf16_masters", "no_stop_token", "recomputed_logprobs")
    with capture_logs() as lines:
        make_learner(monkeypatch, ablate=names)
    assert sorted(line["defect"] for line in lines if line["log_level"] == "warning") == sorted(names)
    with capture_logs() as lines:
        make_learner(monkeypatch)
    assert not [line for line in lines if line["log_level"] == "warning"]


def test_without_the_stop_token_the_rest_is_trained_as_before(monkeypatch) -> None:
    group = make_group(4, stops=True)
    cut = replace(
        group,
        completion_ids=tuple(ids[:-1] for ids in group.completion_ids),
        behaviour_logprobs=tuple(logprobs[:-1] for logprobs in group.behaviour_logprobs),
    )
    ablated, plain = make_learner(monkeypatch, ablate=("no_stop_token",)), make_learner(monkeypatch)
    one, two = ablated.train([group], 1), plain.train([cut], 1)
    assert one.trained_tokens == two.trained_tokens == sum(map(len, group.completion_ids)) - 4
    assert same(masters_of(ablated), masters_of(plain))
    # A truncated completion has no stop token to lose.
    assert make_learner(monkeypatch, ablate=("no_stop_token",)).train([make_group(4)], 1).trained_tokens == (
        sum(map(len, make_group(4).completion_ids))
    )


def test_leaving_out_a_stop_token_that_is_not_known_is_refused(monkeypatch) -> None:
    with pytest.raises(ValueError, match="stop tokens"):
        make_learner(monkeypatch, ablate=("no_stop_token",), stops=())


def test_recomputed_logprobs_hide_what_the_sampler_recorded(monkeypatch) -> None:
    group = make_group(4)
    other = replace(group, behaviour_logprobs=tuple(tuple(x - 1 for x in row) for row in group.behaviour_logprobs))
    first, second = (make_learner(monkeypatch, ablate=("recomputed_logprobs",)) for _ in range(2))
    one, two = first.train([group], 1), second.train([other], 1)
    assert same(masters_of(first), masters_of(second))
    assert one.clip_share == 0
    # What health compares with is still what was recorded.
    assert one.mismatch > 0
    assert one.mismatch != two.mismatch
    honest = make_learner(monkeypatch)
    honest.train([group], 1)
    assert not same(masters_of(honest), masters_of(first))


def test_bf16_masters_lose_small_updates(monkeypatch) -> None:
    kept, lost = (
        make_learner(monkeypatch, learning_rate=1e-6),
        make_learner(monkeypatch, learning_rate=1e-6, ablate=("bf16_masters",)),
    )
    before = {name: tensor.bfloat16().float() for name, tensor in masters_of(kept).items()}
    assert same(masters_of(lost), before)
    kept_before = masters_of(kept)
    for learner in (kept, lost):
        for step in (1, 2):
            learner.train([make_group(step)], step)

    def moved(learner, start) -> float:
        after = masters_of(learner)
        return sum((after[n] != start[n]).sum().item() for n in after) / sum(t.numel() for t in after.values())

    assert moved(kept, kept_before) > 0.7
    assert moved(lost, before) < 0.05
