from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tersely.config.learner import LoraSection
from tersely.grpo import LossInputs, policy_loss
from tersely.testing.modules import load_module
from tersely.trainer.forward import ForwardSettings, completion_logprobs_padded, completion_logprobs_shared
from tersely.trainer.groups import GroupRows
from tersely.trainer.lora import add_adapters
from tersely.trainer.micro_batches import backward_in_parts, group_parts, peak_positions

_models = load_module(Path(__file__).with_name("models.py"))
make_model, VOCABULARY = _models.make_model, _models.VOCABULARY

LENGTHS = [9, 1, 30, 4, 30, 12, 1]
PROMPT = 20
SETTINGS = ForwardSettings(temperature=0.7, logit_chunk_tokens=16)
LOSSES = ["dapo", "grpo", "dr_grpo", "gspo", "cispo"]


pytestmark = pytest.mark.usefixtures("one_thread")


def make_rows(lengths=LENGTHS, *, fill: int = 0, seed: int = 0) -> GroupRows:
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), max(lengths))
    mask = torch.arange(shape[1]) < torch.tensor(lengths)[:, None]

    def noise(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    return GroupRows(
        prompt=torch.randint(3, VOCABULARY, (PROMPT,), generator=generator),
        completion=torch.randint(3, VOCABULARY, shape, generator=generator).masked_fill(~mask, fill),
        lengths=list(lengths),
        behaviour=noise(*shape) - 4,
        mask=mask,
        advantages=noise(len(lengths)),
        start=noise(*shape) - 4,
        reference=noise(*shape) - 4,
    )


def part_inputs(group: GroupRows, rows, logprobs: torch.Tensor, **settings) -> LossInputs:
    part = (rows, slice(logprobs.shape[1]))
    return LossInputs(
        logprobs=logprobs,
        behaviour_logprobs=group.behaviour[part],
        mask=group.mask[part],
        advantages=group.advantages[rows],
        start_logprobs=group.start[part],
        reference_logprobs=group.reference[part],
        token_count=sum(group.lengths),
        sample_count=len(group.lengths),
        max_completion_tokens=40,
        **settings,
    )


def gradient_of(model) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters()]).clone()


def in_one_piece(model, group: GroupRows, **settings) -> torch.Tensor:
    """Autograd through the padded forward pass of all rows at once."""
    model.zero_grad()
    result = completion_logprobs_padded(model, group.prompt, group.completion, group.lengths, SETTINGS)
    policy_loss(part_inputs(group, list(range(len(group.lengths))), result.logprobs, **settings)).loss.backward()
    return gradient_of(model)


def in_parts(model, group: GroupRows, *, shared=True, recompute=False, budget=64, **settings) -> tuple:
    model.zero_grad()
    forward = ForwardSettings(temperature=0.7, logit_chunk_tokens=16, recompute=recompute)
    count = backward_in_parts(
        model,
        group,
        forward,
        lambda rows, result: policy_loss(part_inputs(group, rows, result.logprobs, **settings)).loss,
        shared=shared,
        budget=budget,
        seconds=defaultdict(float),
    )
    return gradient_of(model), count


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("budget", [1, 64, 100_000])
def test_parts_add_up_to_the_gradient_in_one_piece(architecture, shared, recompute, budget) -> None:
    model = make_model(architecture, torch.float64)
    group = make_rows()
    want = in_one_piece(model, group)
    got, parts = in_parts(model, group, shared=shared, recompute=recompute, budget=budget)
    assert want.norm() > 0
    assert difference(got, want) < 1e-10
    assert parts >= 5 if budget == 1 else parts >= 1


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("correction", ["none", "tis", "mask"])
def test_every_loss_and_correction_can_be_taken_in_parts(loss: str, correction: str) -> None:
    model = make_model("llama", torch.float64)
    group = make_rows()
    settings = {"loss": loss, "correction": correction, "kl_coefficient": 0.1}
    want = in_one_piece(model, group, **settings)
    got, parts = in_parts(model, group, **settings)
    assert parts > 1
    assert difference(got, want) < 1e-10


@pytest.mark.parametrize("lengths", [[1], [1, 1, 1], [5], [2, 1]])
@pytest.mark.parametrize("shared", [True, False])
def test_completions_of_one_token_have_their_gradient(lengths: list[int], shared: bool) -> None:
    model = make_model("qwen2", torch.float64)
    group = make_rows(lengths)
    want = in_one_piece(model, group, loss="cispo")  # whose clip takes no gradient away
    assert want.norm() > 0
    assert difference(in_parts(model, group, shared=shared, loss="cispo")[0], want) < 1e-10


def test_kl_gradient_is_that_of_autograd_through_its_formula() -> None:
    """k3 written out on the plain model: exp(ref - new) - (ref - new) - 1, mean over the tokens."""
    model = make_model("llama", torch.float64)
    group = make_rows()
    total = torch.zeros((), dtype=torch.float64)
    for row, length in enumerate(LENGTHS):
        ids = torch.cat([group.prompt, group.completion[row, :length]])
        table = (model(input_ids=ids[None], use_cache=False).logits[0, PROMPT - 1 : -1] / 0.7).log_softmax(-1)
        new = table.gather(-1, group.completion[row, :length, None])[:, 0]
        gap = group.reference[row, :length] - new
        total = total + (gap.exp() - gap - 1).sum() / sum(LENGTHS)
    (3.0 * total).backward()
    want = gradient_of(model)
    with_kl, _ = in_parts(model, group, kl_coefficient=3.0)
    without, _ = in_parts(model, group)
    assert difference(with_kl - without, want) < 1e-8


@pytest.mark.parametrize("shared", [True, False])
def test_padding_ids_change_no_bit_of_the_gradient(shared: bool) -> None:
    model = make_model("llama")
    gradients = [in_parts(model, make_rows(fill=fill), shared=shared)[0] for fill in (0, 2, 50)]
    assert torch.equal(gradients[0], gradients[1])
    assert torch.equal(gradients[0], gradients[2])


@pytest.mark.parametrize("budget", [64, 100_000])
def test_the_same_group_gives_the_same_bytes(budget: int) -> None:
    model = make_model("qwen2")
    first, second = (in_parts(model, make_rows(), budget=budget)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_a_part_is_forgotten_before_the_next_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that autograd keeps at the end of each part's forward pass, with and without parts."""
    model = make_model("llama")
    group = make_rows([30] * 8)
    kept: dict[int, int] = {}
    highest = 0

    class Saved:
        def __init__(self, tensor: torch.Tensor) -> None:
            self.tensor = tensor
            kept[id(self)] = tensor.numel()
            nonlocal highest
            highest = max(highest, sum(kept.values()))

        def __del__(self) -> None:
            kept.pop(id(self), None)

    peaks = {}
    for budget in (PROMPT + 2 * 29, 100_000):
        kept.clear()
        highest = 0
        with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
            in_parts(model, group, budget=budget)
        peaks[budget] = highest
    assert peaks[PROMPT + 2 * 29] < 0.5 * peaks[100_000]


@given(
    st.integers(1, 300),
    st.lists(st.integers(1, 200), min_size=1, max_size=12),
    st.booleans(),
    st.booleans(),
    st.integers(64, 4000),
)
def test_every_row_is_in_one_part_and_the_budget_holds_but_for_single_rows(
    prompt: int, lengths: list[int], shared: bool, recompute: bool, budget: int
) -> None:
    parts = group_parts(prompt, lengths, shared=shared, recompute=recompute, budget=budget)
    assert sorted(row for rows in parts for row in rows) == list(range(len(lengths)))
    assert all(lengths[rows[0]] == max(lengths[row] for row in rows) for rows in parts)
    peak = peak_positions(prompt, lengths, shared=shared, recompute=recompute, budget=budget)
    assert peak <= max(budget, prompt + max(lengths))


def test_no_gradient_forward_of_all_rows_and_of_parts_is_the_same() -> None:
    """The log-probabilities that later passes compare with are those a part gives by itself."""
    model = make_model("llama", torch.float64)
    group = make_rows()
    whole = completion_logprobs_shared(model, group.prompt, group.completion, group.lengths, SETTINGS)
    seen = torch.zeros_like(group.behaviour)

    def loss(rows, result):
        seen[rows, : result.logprobs.shape[1]] = result.logprobs.detach()
        return result.logprobs.sum()

    backward_in_parts(model, group, SETTINGS, loss, shared=True, budget=64, seconds=defaultdict(float))
    torch.testing.assert_close(seen, whole.logprobs.detach(), rtol=0, atol=1e-11)


@pytest.mark.parametrize("adapters", [False, True])
def test_parts_run_in_bf16_autocast_with_fp32_gradients(adapters: bool) -> None:
    """What accelerators do, here on a CPU: near the fp32 gradient, and fp32 where the masters take it."""
    model = make_model("llama")
    if adapters:
        add_adapters(model, LoraSection(rank=4, alpha=8))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(std=0.02, generator=torch.Generator().manual_seed(0))
    group = make_rows()
    gradients = []
    for autocast in (None, torch.bfloat16):
        model.zero_grad()
        backward_in_parts(
            model,
            group,
            ForwardSettings(autocast=autocast),
            lambda rows, result: policy_loss(part_inputs(group, rows, result.logprobs, loss="cispo")).loss,
            shared=True,
            budget=64,
            seconds=defaultdict(float),
        )
        trained = [p.grad for p in model.parameters() if p.requires_grad]
        assert {gradient.dtype for gradient in trained} == {torch.float32}
        gradients.append(torch.cat([gradient.flatten() for gradient in trained]))
    assert 0 < difference(gradients[1], gradients[0]) < 0.1
