from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from tersely.grpo import LossInputs, policy_loss


def make_inputs(seed: int = 0) -> LossInputs:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    behaviour = -normal(5, 7).abs()
    lengths = torch.tensor([7, 3, 1, 5, 6])
    return LossInputs(
        logprobs=(behaviour + 0.4 * normal(5, 7)).requires_grad_(),
        behaviour_logprobs=behaviour,
        mask=torch.arange(7) < lengths[:, None],
        advantages=normal(5),
    )


def slow_loss(inputs: LossInputs, low: float, high: float, count: int) -> tuple[float, list[list[float]], int]:
    """Loss, gradient and clipped tokens, written token by token from the formula."""
    total, clipped = 0.0, 0
    gradient = [[0.0] * inputs.logprobs.shape[1] for _ in inputs.advantages]
    for row, advantage in enumerate(inputs.advantages.tolist()):
        for column in range(inputs.logprobs.shape[1]):
            if not inputs.mask[row, column]:
                continue
            ratio = math.exp(inputs.logprobs[row, column].item() - inputs.behaviour_logprobs[row, column].item())
            bounded = max(1 - low, min(1 + high, ratio))
            total += -min(ratio * advantage, bounded * advantage)
            if (advantage > 0 and ratio > 1 + high) or (advantage < 0 and ratio < 1 - low):
                clipped += 1
            else:
                gradient[row][column] = -ratio * advantage / count
    return total / count, gradient, clipped


@pytest.mark.parametrize("seed", range(3))
def test_loss_and_gradient_equal_a_loop_over_tokens(seed: int) -> None:
    inputs = make_inputs(seed)
    outputs = policy_loss(replace(inputs, token_count=40))
    outputs.loss.backward()
    loss, gradient, clipped = slow_loss(inputs, 0.2, 0.28, 40)
    assert outputs.loss.item() == pytest.approx(loss, rel=1e-12)
    torch.testing.assert_close(inputs.logprobs.grad, torch.tensor(gradient, dtype=torch.float64), rtol=1e-12, atol=0)
    assert outputs.clipped_tokens.item() == clipped > 0
    assert outputs.tokens.item() == 22


def test_parts_of_a_batch_add_up_to_the_batch() -> None:
    whole = replace(make_inputs(), token_count=22)
    parts = [
        LossInputs(whole.logprobs[p], whole.behaviour_logprobs[p], whole.mask[p], whole.advantages[p], token_count=22)
        for p in (slice(0, 2), slice(2, 5))
    ]
    pieces = sum(policy_loss(part).loss for part in parts)
    torch.testing.assert_close(policy_loss(whole).loss, pieces, rtol=1e-12, atol=0)


def test_one_absurd_token_gives_a_finite_loss_and_gradient() -> None:
    logprobs = torch.tensor([[0.0, -1.0]], requires_grad=True)
    behaviour, mask = torch.tensor([[-500.0, -1.0]]), torch.ones(1, 2, dtype=torch.bool)
    loss = policy_loss(LossInputs(logprobs, behaviour, mask, torch.tensor([-1.0]))).loss
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logprobs.grad).all()


def broken_inputs() -> dict[str, LossInputs]:
    good = make_inputs()
    nan = torch.full_like(good.advantages, float("nan"))
    return {
        "behaviour shape": replace(good, behaviour_logprobs=good.behaviour_logprobs[:, :3]),
        "start shape": replace(good, start_logprobs=good.behaviour_logprobs[:2]),
        "one dimension": replace(good, logprobs=good.logprobs[0]),
        "advantages shape": replace(good, advantages=good.advantages[:2]),
        "mask dtype": replace(good, mask=good.mask.long()),
        "advantage NaN": replace(good, advantages=nan),
        "no start": replace(good, correction="tis"),
        "no reference": replace(good, kl_coefficient=0.1),
        "no tokens": replace(good, token_count=0),
        "no samples": replace(good, loss="grpo", sample_count=0),
        "no limit": replace(good, loss="dr_grpo", max_completion_tokens=0),
    }


@pytest.mark.parametrize("broken", list(broken_inputs()))
def test_inputs_that_do_not_fit_are_refused(broken: str) -> None:
    with pytest.raises(ValueError, match=r"shape|bool|tokens|finite|needs|positive"):
        policy_loss(broken_inputs()[broken])
