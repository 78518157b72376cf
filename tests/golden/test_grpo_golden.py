"""The package's losses and advantages against loops written from the papers: 1e-10 in float64."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest
import torch

from tersely.grpo import LossInputs, advantages, policy_loss
from tersely.testing.modules import load_module

reference = load_module(Path(__file__).with_name("grpo_reference.py"))

LENGTHS = (7, 3, 1, 5, 6, 2)
EXACT = {"rtol": 1e-10, "atol": 1e-10}


def make_batch(seed: int, **settings) -> reference.Batch:  # type: ignore[no-untyped-def,name-defined]
    """Six samples whose ratios and weights lie on both sides of every bound."""
    rng = random.Random(seed)
    behaviour = [[-abs(rng.gauss(0, 1.5)) for _ in range(length)] for length in LENGTHS]

    def moved(rows: list[list[float]], spread: float) -> list[list[float]]:
        return [[value + rng.gauss(0, spread) for value in row] for row in rows]

    start = moved(behaviour, 0.5)
    policy = moved(start, 0.3)
    signs = (1, -1, 1, -1, -1, 1)
    return reference.Batch(
        policy=policy,
        behaviour=behaviour,
        start=start,
        reference=moved(policy, 0.5),
        advantages=[sign * abs(rng.gauss(0, 1)) for sign in signs],
        longest=9,
        **settings,
    )


def tensors(loss: str, batch: reference.Batch) -> LossInputs:  # type: ignore[name-defined]
    """The same batch, padded with what would show if it were looked at."""

    def padded(rows: list[list[float]]) -> torch.Tensor:
        table = torch.full((len(rows), max(LENGTHS)), float("nan"), dtype=torch.float64)
        for index, row in enumerate(rows):
            table[index, : len(row)] = torch.tensor(row, dtype=torch.float64)
        return table

    return LossInputs(
        logprobs=padded(batch.policy).requires_grad_(),
        behaviour_logprobs=padded(batch.behaviour),
        mask=torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None],
        advantages=torch.tensor(batch.advantages, dtype=torch.float64),
        start_logprobs=None if batch.correction == "none" else padded(batch.start),
        reference_logprobs=padded(batch.reference) if batch.beta else None,
        loss=loss,  # type: ignore[arg-type]
        clip_low=batch.low,
        clip_high=batch.high,
        correction=batch.correction,  # type: ignore[arg-type]
        correction_cap=batch.cap,
        kl_coefficient=batch.beta,
        max_completion_tokens=batch.longest,
    )


GRID = list(
    itertools.product(
        reference.LOSSES,
        ("none", "tis", "mask"),
        (0.0, 0.07),
        ((0.2, 0.28), (0.2, 0.2), (0.05, 0.5), (3e-4, 4e-4)),
    )
)


@pytest.mark.parametrize(("loss", "correction", "beta", "clip"), GRID)
def test_loss_and_gradient_equal_the_papers_formulas(
    loss: str, correction: str, beta: float, clip: tuple[float, float]
) -> None:
    for seed in range(3):
        batch = make_batch(seed, low=clip[0], high=clip[1], correction=correction, cap=1.5, beta=beta)
        value, gradient = reference.loss_and_gradient(loss, batch)
        inputs = tensors(loss, batch)
        got = policy_loss(inputs).loss
        got.backward()
        assert got.item() == pytest.approx(value, rel=1e-10, abs=1e-10)
        for row, wanted in zip(inputs.logprobs.grad, gradient, strict=True):
            torch.testing.assert_close(row[: len(wanted)], torch.tensor(wanted, dtype=torch.float64), **EXACT)
            assert (row[len(wanted) :] == 0).all()


@pytest.mark.parametrize("loss", reference.LOSSES)
def test_the_reference_s_own_gradient_stands_up_to_central_differences(loss: str) -> None:
    batch = make_batch(5, low=0.2, high=0.28, correction="tis", cap=1.5, beta=0.1)
    _, gradient = reference.loss_and_gradient(loss, batch)
    for i, t in ((0, 0), (3, 4), (5, 1)):
        values = []
        for move in (1e-6, -1e-6):
            rows = [list(row) for row in batch.policy]
            rows[i][t] += move
            values.append(reference.LOSSES[loss](batch, rows).real)
        assert (values[0] - values[1]) / 2e-6 == pytest.approx(gradient[i][t], rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("correction", ["tis", "mask"])
def test_the_batches_reach_every_branch(correction: str) -> None:
    batch = make_batch(0, low=0.2, high=0.28, correction=correction, cap=1.5, beta=0.0)
    ratios = [
        (reference.cmath.exp(new - old).real, advantage)
        for row, start, advantage in zip(batch.policy, batch.start, batch.advantages, strict=True)
        for new, old in zip(row, start, strict=True)
    ]
    for sign in (1, -1):
        assert any(ratio > 1.28 and advantage * sign > 0 for ratio, advantage in ratios)
        assert any(ratio < 0.8 and advantage * sign > 0 for ratio, advantage in ratios)
    outputs = policy_loss(tensors("dapo", batch))
    weights = [reference.importance_weight(batch, i, t) for i, row in enumerate(batch.policy) for t in range(len(row))]
    assert outputs.correction_sum.item() == pytest.approx(sum(weights), rel=1e-12)
    assert outputs.masked_tokens.item() == weights.count(0.0)
    assert outputs.masked_tokens.item() > 0 if correction == "mask" else weights.count(1.5) > 0


def test_kl_and_mismatch_are_summed_over_tokens() -> None:
    batch = make_batch(1, low=0.2, high=0.28, correction="none", cap=1.5, beta=0.3)
    outputs = policy_loss(tensors("grpo", batch))
    places = [(i, t) for i, row in enumerate(batch.policy) for t in range(len(row))]
    assert outputs.kl_sum.item() == pytest.approx(
        sum(reference.kl(batch, batch.policy, i, t).real for i, t in places), rel=1e-10
    )
    assert outputs.mismatch_sum.item() == pytest.approx(
        sum(abs(batch.policy[i][t] - batch.behaviour[i][t]) for i, t in places), rel=1e-12
    )
    assert outputs.tokens.item() == outputs.correction_sum.item() == len(places)


WEIGHTS = ({"a": 1.0, "b": 1.0, "c": 0.0}, {"a": 1.0, "b": 0.25, "c": -0.5}, {"a": 2.0, "b": 0.0, "c": 0.0})


@pytest.mark.parametrize(
    ("weights", "divide", "each_first", "missing"),
    list(itertools.product(WEIGHTS, (True, False), (True, False), (0.0, 0.25))),
)
def test_advantages_equal_loops(weights: dict[str, float], divide: bool, each_first: bool, missing: float) -> None:
    rng = random.Random(3)
    rewards: dict[str, list[list[float | None]]] = {
        name: [[None if rng.random() < missing else rng.gauss(0, scale) for _ in range(6)] for _ in range(4)]
        for name, scale in (("a", 1.0), ("b", 20.0), ("c", 0.01))
    }
    want = reference.advantages(rewards, weights, divide=divide, each_first=each_first)
    got = advantages(
        rewards,
        weights=weights,
        scale="std" if divide else "none",
        combine="normalize_then_sum" if each_first else "sum_then_normalize",
    )
    table = torch.tensor([[float("nan") if v is None else v for v in row] for row in want], dtype=torch.float64)
    torch.testing.assert_close(got, table, equal_nan=True, **EXACT)
    assert torch.isnan(got).any() == (missing > 0)
