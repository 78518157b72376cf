from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tersely.grpo import advantages
from tersely.grpo.group_advantages import batch_advantages

NAN = float("nan")


def test_a_tensor_lists_and_a_name_give_the_same() -> None:
    table = [[1.0, None, 4.0, 2.0], [0.0, 0.0, 1.0, 0.0]]
    tensor = torch.tensor([[NAN if value is None else value for value in row] for row in table])
    want = torch.tensor(
        [
            [NAN if value is None else value for value in group]
            for group in batch_advantages([{"a": row} for row in table], {"a": 1.0})
        ],
        dtype=torch.float64,
    )
    for rewards in (table, tensor, tensor.requires_grad_(), {"a": table}, {"a": tensor}):
        got = advantages(rewards)
        assert got.dtype == torch.float64
        assert not got.requires_grad
        torch.testing.assert_close(got, want, rtol=1e-15, atol=0, equal_nan=True)


@given(st.permutations(range(5)), st.lists(st.integers(-9, 9), min_size=15, max_size=15))
def test_permuting_a_group_permutes_its_advantages_and_no_others(order: list[int], numbers: list[int]) -> None:
    table = torch.tensor(numbers, dtype=torch.float64).reshape(3, 5)
    permuted = table.clone()
    permuted[1] = table[1, order]
    got, want = advantages(permuted), advantages(table)
    torch.testing.assert_close(got[1], want[1, order], rtol=1e-12, atol=1e-12)
    assert torch.equal(got[[0, 2]], want[[0, 2]])


@given(
    st.lists(st.integers(-9, 9), min_size=12, max_size=12),
    st.integers(-1000, 1000),
    st.sampled_from(["std", "none"]),
    st.sampled_from(["sum_then_normalize", "normalize_then_sum"]),
)
def test_a_constant_added_to_all_values_of_a_reward_changes_nothing(
    numbers: list[int], constant: int, scale: str, combine: str
) -> None:
    a = torch.tensor(numbers, dtype=torch.float64).reshape(3, 4)
    b = a.flip(0) * 0.5
    results = [
        advantages({"a": a + plus, "b": b}, weights={"a": 1.0, "b": 0.3}, scale=scale, combine=combine)  # type: ignore[arg-type]
        for plus in (0, constant)
    ]
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-9)


def test_rewards_of_weight_zero_or_without_a_weight_are_not_looked_at() -> None:
    rewards = {"a": [[1.0, 2.0]], "shown": [[None, NAN]], "other": [[NAN, None]]}
    want = advantages([[1.0, 2.0]])
    torch.testing.assert_close(advantages(rewards, weights={"a": 1.0, "shown": 0.0}), want, rtol=0, atol=0)


def test_a_group_with_one_scorable_sample_is_out() -> None:
    assert torch.isnan(advantages([[1.0, None], [1.0, 2.0]])).tolist() == [[True, True], [False, False]]


def test_no_groups_give_no_advantages() -> None:
    assert advantages(torch.empty(0, 4)).numel() == 0


@pytest.mark.parametrize(
    ("rewards", "weights", "message"),
    [
        ([[1.0], [1.0, 2.0]], None, "number of samples"),
        (torch.ones(3), None, "shape"),
        ({"a": [[1.0, 2.0]], "b": [[1.0, 2.0], [1.0, 2.0]]}, None, "differ in shape"),
        ({"a": [[1.0, 2.0]]}, {"b": 1.0}, "for b"),
        ({"a": [[1.0, 2.0]]}, {"a": 0.0}, "no reward"),
        ([[1.0, 2.0]], {"a": 1.0}, "by name"),
        ({}, None, "no reward"),
    ],
)
def test_rewards_that_do_not_fit_are_refused(rewards, weights, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        advantages(rewards, weights=weights)


def test_the_seeds_are_had_without_torch() -> None:
    code = "import sys, tersely.grpo.seeds; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
