from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import DynamicCache

from tersely.grpo import LossInputs, policy_loss
from tersely.testing.modules import load_module
from tersely.trainer import head
from tersely.trainer.forward import (
    Forward,
    ForwardSettings,
    completion_logprobs_padded,
    completion_logprobs_shared,
)
from tersely.trainer.head import kept_chunks, sampled_logprobs

_models = load_module(Path(__file__).with_name("models.py"))
make_model, VOCABULARY = _models.make_model, _models.VOCABULARY

LENGTHS = (9, 1, 30, 4, 30, 12)
SETTINGS = ForwardSettings(temperature=0.7, logit_chunk_tokens=16)
ARCHITECTURES = ["llama", "qwen2"]


pytestmark = pytest.mark.usefixtures("one_thread")


def make_ids(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCABULARY, (20 + len(LENGTHS) * max(LENGTHS),), generator=generator)
    return ids[:20], ids[20:].view(len(LENGTHS), max(LENGTHS))


def run(
    model, forward: Forward, settings: ForwardSettings, *, prompt=None, mask=None, lengths=LENGTHS
) -> tuple[float, torch.Tensor]:
    """Loss and flat gradient of one group."""
    model.zero_grad()
    own_prompt, completion = make_ids()
    result = forward(model, own_prompt if prompt is None else prompt, completion, lengths, settings)
    generator = torch.Generator().manual_seed(1)
    shape = completion.shape
    behaviour = result.logprobs.detach() + 0.3 * torch.randn(shape, generator=generator, dtype=torch.float64)
    if mask is None:
        mask = torch.arange(shape[1]) < torch.tensor(lengths)[:, None]
    advantages = torch.randn(shape[0], generator=generator, dtype=torch.float64)
    behaviour = behaviour.to(result.logprobs.dtype)
    loss = policy_loss(LossInputs(result.logprobs, behaviour, mask, advantages, token_count=sum(lengths))).loss
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in model.parameters()]).clone()


def plain_logprobs(model, prompt: torch.Tensor, completion: torch.Tensor, lengths, temperature: float):
    """The model as Transformers runs it, row by row, without cache, chunks or code of ours."""
    rows, entropies = [], []
    for ids, length in zip(completion, lengths, strict=True):
        sequence = torch.cat([prompt, ids[:length]])
        logits = model(input_ids=sequence[None], use_cache=False).logits[0, len(prompt) - 1 : -1] / temperature
        table = logits.log_softmax(-1)
        rows.append(table.gather(-1, ids[:length, None])[:, 0])
        entropies.append(-(table.exp() * table).sum(-1))
    return torch.nn.utils.rnn.pad_sequence(rows, True), torch.nn.utils.rnn.pad_sequence(entropies, True)


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("forward", [completion_logprobs_shared, completion_logprobs_padded])
def test_logprobs_entropy_and_gradients_are_those_of_the_plain_model(architecture: str, forward: Forward) -> None:
    model = make_model(architecture, torch.float64)
    prompt, completion = make_ids()
    weights = torch.randn(completion.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    want, want_entropy = plain_logprobs(model, prompt, completion, LENGTHS, SETTINGS.temperature)
    (want * weights).sum().backward()
    want_gradient = torch.cat([p.grad.flatten() for p in model.parameters()]).clone()
    model.zero_grad()
    got = forward(model, prompt, completion, LENGTHS, SETTINGS)
    (got.logprobs * weights).sum().backward()
    torch.testing.assert_close(got.logprobs, want, rtol=0, atol=1e-11)
    torch.testing.assert_close(got.entropy, want_entropy, rtol=0, atol=1e-11)
    assert not got.entropy.requires_grad
    assert difference(torch.cat([p.grad.flatten() for p in model.parameters()]), want_gradient) < 1e-10


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_shared_prompt_gradients_equal_padded_gradients(
    architecture: str, dtype: torch.dtype, bound: float, recompute: bool
) -> None:
    model = make_model(architecture, dtype)
    padded_loss, padded = run(model, completion_logprobs_padded, SETTINGS)
    shared_loss, shared = run(model, completion_logprobs_shared, replace(SETTINGS, recompute=recompute))
    assert padded.norm() > 0
    assert difference(shared, padded) < bound
    assert shared_loss == pytest.approx(padded_loss, rel=bound, abs=bound)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_padded_gradients_under_recompute_are_the_same(architecture: str) -> None:
    model = make_model(architecture, torch.float64)
    _, calm = run(model, completion_logprobs_padded, SETTINGS)
    _, again = run(model, completion_logprobs_padded, replace(SETTINGS, recompute=True))
    assert difference(again, calm) < 1e-12


@pytest.mark.parametrize("recompute", [False, True])
def test_the_prompt_reaches_every_completion_token_and_gets_gradients(recompute: bool) -> None:
    """Gradient checkpointing that loses the cache gives logprobs without a prompt; here each of them depends on it."""
    model = make_model("llama")
    settings = replace(SETTINGS, recompute=recompute)
    prompt, completion = make_ids()
    other = prompt.clone()
    other[0] = 95 if prompt[0] != 95 else 94
    here = completion_logprobs_shared(model, prompt, completion, LENGTHS, settings).logprobs
    there = completion_logprobs_shared(model, other, completion, LENGTHS, settings).logprobs
    sampled = torch.arange(completion.shape[1]) < torch.tensor(LENGTHS)[:, None]
    assert ((here - there).abs()[sampled] > 0).all()

    # Late tokens of one row: their gradient reaches the prompt's first id only through keys and values.
    model = make_model("qwen2")
    lone = torch.cat([torch.tensor([96]), prompt.masked_fill(prompt == 96, 5)])
    here = completion_logprobs_shared(model, lone, completion.masked_fill(completion == 96, 5), LENGTHS, settings)
    here.logprobs[4, 20:].sum().backward()
    assert model.get_input_embeddings().weight.grad[96].norm() > 1e-6


def test_checkpointing_by_transformers_loses_the_prompt_and_is_refused() -> None:
    """The trap itself: should a release mend it, the first half fails, and our own recomputation may go."""
    model = make_model("llama")
    model.activation_checkpointing_enable()
    model.train()
    prompt, completion = make_ids()
    outputs = []
    for ids in (prompt, prompt.flip(0)):
        cache = DynamicCache()
        model(input_ids=ids[None], past_key_values=cache, use_cache=True)
        outputs.append(model(input_ids=completion[:1], past_key_values=cache, use_cache=True).logits)
    assert torch.equal(*outputs)
    with pytest.raises(RuntimeError, match="did not fill the cache"):
        completion_logprobs_shared(model, prompt, completion, LENGTHS, SETTINGS)


@pytest.mark.parametrize("recompute", [False, True])
def test_another_prompt_gives_another_loss(recompute: bool) -> None:
    model = make_model("llama")
    prompt, completion = make_ids()
    behaviour = completion_logprobs_padded(model, prompt, completion, LENGTHS, SETTINGS).logprobs.detach()
    mask = torch.arange(completion.shape[1]) < torch.tensor(LENGTHS)[:, None]
    losses = []
    for ids in (prompt, prompt.flip(0)):
        logprobs = completion_logprobs_shared(
            model, ids, completion, LENGTHS, replace(SETTINGS, recompute=recompute)
        ).logprobs
        advantages = torch.linspace(-1, 1, len(LENGTHS))
        inputs = LossInputs(logprobs, behaviour, mask, advantages, token_count=sum(LENGTHS))
        losses.append(policy_loss(inputs).loss.item())
    assert abs(losses[0] - losses[1]) > 1e-3


def test_leaving_the_stop_token_out_of_the_mask_changes_the_gradient() -> None:
    model = make_model("llama", torch.float64)
    positions = torch.arange(max(LENGTHS))
    lengths = torch.tensor(LENGTHS)[:, None]
    _, whole = run(model, completion_logprobs_shared, SETTINGS, mask=positions < lengths)
    _, without = run(model, completion_logprobs_shared, SETTINGS, mask=positions < lengths - 1)
    assert difference(without, whole) > 1e-2


def test_ids_beyond_a_length_change_nothing() -> None:
    model = make_model("llama", torch.float64)
    prompt, completion = make_ids()
    beyond = torch.arange(completion.shape[1]) >= torch.tensor(LENGTHS)[:, None]
    results = [
        completion_logprobs_shared(model, prompt, completion.masked_fill(beyond, fill), LENGTHS, SETTINGS)
        for fill in (0, 2, 50)
    ]
    assert torch.equal(results[0].logprobs, results[1].logprobs)
    assert torch.equal(results[0].logprobs, results[2].logprobs)
    assert (results[0].logprobs[beyond] == 0).all()


def test_two_passes_give_the_same_bytes() -> None:
    model = make_model("llama")
    first, second = (run(model, completion_logprobs_shared, SETTINGS)[1] for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("chunk", [1, 4, 100])
@pytest.mark.parametrize("kept_bytes", [0, 23 * 4 * 4 * 2, head.KEPT_BYTES])
def test_the_chunked_head_equals_autograd_through_a_whole_log_softmax(
    chunk: int, bias: bool, kept_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "KEPT_BYTES", kept_bytes)
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    hidden, weight, shift = normal(11, 6), normal(23, 6), normal(23) if bias else None
    ids, outer = torch.randint(0, 23, (11,), generator=generator), normal(11).detach()
    leaves = [leaf for leaf in (hidden, weight, shift) if leaf is not None]
    table = (torch.nn.functional.linear(hidden, weight, shift) / 0.8).log_softmax(-1)
    want = table.gather(-1, ids[:, None])[:, 0]
    want_gradients = torch.autograd.grad((want * outer).sum(), leaves)
    got, entropy = sampled_logprobs(hidden, weight, shift, ids, temperature=0.8, chunk_tokens=chunk)
    gradients = torch.autograd.grad((got * outer).sum(), leaves)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(entropy, -(table.exp() * table).sum(-1).detach(), rtol=1e-12, atol=1e-12)
    for mine, theirs in zip(gradients, want_gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-12)


def test_the_head_never_makes_a_tensor_of_all_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    real = torch.log_softmax
    monkeypatch.setattr(torch, "log_softmax", lambda logits, dim: sizes.append(logits.shape[0]) or real(logits, dim))
    run(make_model("llama"), completion_logprobs_shared, SETTINGS)
    assert max(sizes) <= SETTINGS.logit_chunk_tokens < sum(LENGTHS)


def test_chunks_are_kept_up_to_a_number_of_bytes_and_one_is_always() -> None:
    assert kept_chunks(256, 49_152) == 2  # SmolLM2: 50 MB each
    assert kept_chunks(256, 151_936) == 1  # Qwen2.5: 156 MB each
    assert kept_chunks(16, 100) * 16 * 100 * 4 <= head.KEPT_BYTES
