"""What holds for every loss, correction and KL, on random batches."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tersely.grpo import LossInputs, LossOutputs, advantages, policy_loss

TABLES = ("logprobs", "behaviour_logprobs", "mask", "start_logprobs", "reference_logprobs")
SUMS = [field.name for field in fields(LossOutputs)]


@st.composite
def batches(draw: st.DrawFn, samples: int | None = None) -> LossInputs:
    """A batch with its global counts, of ragged samples, in float64."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    rows = samples or draw(st.integers(2, 7))
    lengths = torch.tensor(draw(st.lists(st.integers(1, 6), min_size=rows, max_size=rows)))

    def normal(spread: float) -> torch.Tensor:
        return spread * torch.randn(rows, 6, generator=generator, dtype=torch.float64)

    behaviour = -normal(1.5).abs()
    start = behaviour + normal(0.5)
    policy = start + normal(0.3)
    return LossInputs(
        logprobs=policy,
        behaviour_logprobs=behaviour,
        mask=torch.arange(6) < lengths[:, None],
        advantages=normal(1.0)[:, 0],
        start_logprobs=start,
        reference_logprobs=policy + normal(0.5),
        loss=draw(st.sampled_from(["dapo", "grpo", "dr_grpo", "gspo", "cispo"])),
        clip_low=draw(st.floats(0.01, 0.9)),
        clip_high=draw(st.floats(0.01, 2.0)),
        correction=draw(st.sampled_from(["none", "tis", "mask"])),
        correction_cap=draw(st.floats(1.01, 3.0)),
        kl_coefficient=draw(st.sampled_from([0.0, 0.1])),
        token_count=int(lengths.sum()),
        sample_count=rows,
        max_completion_tokens=9,
    )


def rows_of(inputs: LossInputs, index: torch.Tensor | slice) -> LossInputs:
    chosen = {name: getattr(inputs, name)[index] for name in (*TABLES, "advantages")}
    return replace(inputs, **chosen)


def run(inputs: LossInputs) -> tuple[dict[str, float], torch.Tensor]:
    """Every output as a number, and the gradient."""
    logprobs = inputs.logprobs.clone().requires_grad_()
    outputs = policy_loss(replace(inputs, logprobs=logprobs))
    outputs.loss.backward()
    assert logprobs.grad is not None
    return {name: getattr(outputs, name).item() for name in SUMS}, logprobs.grad


def close(left: dict[str, float], right: dict[str, float]) -> bool:
    return left == pytest.approx(right, rel=1e-12, abs=1e-12)


@given(batches(), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_permuting_samples_permutes_the_gradient_and_nothing_else(inputs: LossInputs, random) -> None:  # type: ignore[no-untyped-def]
    order = list(range(len(inputs.advantages)))
    random.shuffle(order)
    outputs, gradient = run(inputs)
    permuted_outputs, permuted_gradient = run(rows_of(inputs, torch.tensor(order)))
    assert close(permuted_outputs, outputs)
    torch.testing.assert_close(permuted_gradient, gradient[order], rtol=1e-12, atol=1e-15)


@given(batches(), st.sampled_from([float("nan"), float("inf"), float("-inf"), 1e300, -7.0]))
@settings(deadline=None)
def test_padding_has_no_gradient_and_what_stands_there_changes_nothing(inputs: LossInputs, garbage: float) -> None:
    outputs, gradient = run(inputs)
    filled = {name: torch.where(inputs.mask, getattr(inputs, name), garbage) for name in TABLES if name != "mask"}
    filled_outputs, filled_gradient = run(replace(inputs, **filled))
    assert filled_outputs == outputs
    assert torch.equal(filled_gradient, gradient)
    assert (filled_gradient[~inputs.mask] == 0).all()


@given(batches(), st.integers(1, 4))
@settings(deadline=None)
def test_more_padding_changes_nothing(inputs: LossInputs, columns: int) -> None:
    wider = {name: torch.nn.functional.pad(getattr(inputs, name), (0, columns)) for name in TABLES}
    wide_outputs, wide_gradient = run(replace(inputs, **wider))
    outputs, gradient = run(inputs)
    assert close(wide_outputs, outputs)
    torch.testing.assert_close(wide_gradient[:, :6], gradient, rtol=1e-12, atol=1e-15)


@given(batches(), st.data())
@settings(deadline=None)
def test_parts_add_up_to_the_batch(inputs: LossInputs, data: st.DataObject) -> None:
    cut = data.draw(st.integers(1, len(inputs.advantages) - 1))
    parts = [run(rows_of(inputs, slice(None, cut))), run(rows_of(inputs, slice(cut, None)))]
    outputs, gradient = run(inputs)
    assert close({name: sum(part[name] for part, _ in parts) for name in SUMS}, outputs)
    torch.testing.assert_close(torch.cat([part for _, part in parts]), gradient, rtol=1e-12, atol=1e-15)


@given(batches())
@settings(deadline=None)
def test_counts_that_are_left_out_are_those_of_the_given_samples(inputs: LossInputs) -> None:
    outputs, _ = run(inputs)
    assert close(run(replace(inputs, token_count=None, sample_count=None))[0], outputs)
    assert close(run(replace(inputs, max_completion_tokens=None))[0], run(replace(inputs, max_completion_tokens=6))[0])


@given(batches(samples=6), st.lists(st.integers(-20, 20), min_size=6, max_size=6), st.integers(-1000, 1000))
@settings(deadline=None)
def test_a_constant_added_to_all_rewards_changes_neither_loss_nor_gradient(
    inputs: LossInputs, rewards: list[int], constant: int
) -> None:
    table = torch.tensor(rewards, dtype=torch.float64).reshape(2, 3)
    results = [run(replace(inputs, advantages=advantages(table + plus).flatten())) for plus in (0, constant)]
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-9, abs=1e-9)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-9, atol=1e-9)


@given(
    batches(samples=8),
    st.lists(st.floats(-5, 5), min_size=16, max_size=16),
    st.integers(0, 3),
    st.sampled_from(["sum_then_normalize", "normalize_then_sum"]),
)
@settings(deadline=None)
def test_a_none_in_one_sample_equals_that_sample_removed(
    inputs: LossInputs, numbers: list[float], out: int, combine: str
) -> None:
    """Groups of four and four with a None, against groups of three and four: advantages, loss and gradient."""
    two = {"a": [numbers[0:4], numbers[4:8]], "b": [numbers[8:12], numbers[12:16]]}
    with_none = {
        name: [[None if name == "b" and i == out else value for i, value in enumerate(groups[0])], groups[1]]
        for name, groups in two.items()
    }
    values = advantages(with_none, combine=combine).flatten()  # type: ignore[arg-type]
    kept = ~torch.isnan(values)
    assert kept.tolist() == [i != out for i in range(8)]

    def remaining(groups: list[list[float]]) -> list[list[float | None]]:
        """The same without the sample; a place without rewards keeps the table rectangular."""
        return [[*(value for i, value in enumerate(groups[0]) if i != out), None], list(groups[1])]

    removed = advantages({name: remaining(groups) for name, groups in two.items()}, combine=combine).flatten()  # type: ignore[arg-type]
    removed = removed[~torch.isnan(removed)]
    torch.testing.assert_close(values[kept], removed, rtol=1e-12, atol=1e-12)

    never_there = rows_of(inputs, kept)
    never_there = replace(
        never_there, advantages=removed, token_count=int(never_there.mask.sum()), sample_count=int(kept.sum())
    )
    emptied = replace(
        never_there,
        **{name: getattr(inputs, name) for name in TABLES if name != "mask"},
        mask=inputs.mask & kept[:, None],
        advantages=values.nan_to_num(nan=123.0),
    )
    removed_outputs, removed_gradient = run(never_there)
    outputs, gradient = run(emptied)
    assert close(outputs, removed_outputs)
    torch.testing.assert_close(gradient[kept], removed_gradient, rtol=1e-12, atol=1e-15)
    assert (gradient[~kept] == 0).all()


@given(batches())
@settings(deadline=None)
def test_without_any_movement_all_losses_push_along_the_advantage(inputs: LossInputs) -> None:
    """Learner, start and sampler agree: every ratio and weight is 1, nothing is clipped, and the signs are plain."""
    same = replace(
        inputs,
        behaviour_logprobs=inputs.logprobs,
        start_logprobs=inputs.logprobs,
        reference_logprobs=inputs.logprobs,
    )
    outputs, gradient = run(same)
    assert outputs["clipped_tokens"] == outputs["masked_tokens"] == outputs["mismatch_sum"] == outputs["kl_sum"] == 0
    assert outputs["correction_sum"] == outputs["tokens"] == inputs.mask.sum().item()
    signs = -inputs.advantages.sign()[:, None].expand_as(gradient)
    assert torch.equal(gradient.sign()[inputs.mask], signs[inputs.mask])


@pytest.mark.parametrize("loss", ["dapo", "grpo", "dr_grpo", "gspo", "cispo"])
@pytest.mark.parametrize("correction", ["none", "tis", "mask"])
def test_absurd_logprobs_give_a_finite_loss_and_gradient(loss: str, correction: str) -> None:
    logprobs = torch.tensor([[0.0, -1.0], [-900.0, -1.0]])
    inputs = LossInputs(
        logprobs=logprobs,
        behaviour_logprobs=torch.tensor([[-500.0, -1.0], [0.0, -2.0]]),
        mask=torch.ones(2, 2, dtype=torch.bool),
        advantages=torch.tensor([-1.0, 1.0]),
        start_logprobs=torch.tensor([[-300.0, -1.0], [-3.0, -2.0]]),
        reference_logprobs=torch.tensor([[-700.0, 0.0], [-1.0, -2.0]]),
        loss=loss,  # type: ignore[arg-type]
        correction=correction,  # type: ignore[arg-type]
        kl_coefficient=0.1,
    )
    outputs, gradient = run(inputs)
    assert torch.isfinite(torch.tensor(list(outputs.values()))).all()
    assert torch.isfinite(gradient).all()
