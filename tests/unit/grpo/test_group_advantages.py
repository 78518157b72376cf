from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tersely.grpo.group_advantages import batch_advantages, has_signal

ONE = {"length": 1.0}


def numpy_group(values: list[float], *, divide: bool = True) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    centred = array - array.mean()
    return centred / (array.std(ddof=1) + 1e-4) if divide else centred


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=9), st.booleans())
def test_one_reward_is_centred_and_divided_by_the_sample_deviation(values: list[float], divide: bool) -> None:
    [got] = batch_advantages([{"length": values}], ONE, scale="std" if divide else "none")
    np.testing.assert_allclose(got, numpy_group(values, divide=divide), rtol=1e-9, atol=1e-9)


def test_groups_are_compared_within_themselves_only() -> None:
    low, high = [0.0, 1.0, 3.0], [100.0, 101.0, 103.0]
    first, second = batch_advantages([{"length": low}, {"length": high}], ONE)
    np.testing.assert_allclose(first, second, rtol=1e-9)


def test_two_rewards_are_normalised_each_then_summed_then_over_the_batch() -> None:
    weights = {"length": 1.0, "rouge": 0.25, "shown": 0.0}
    groups = [
        {"length": [-1.0, -0.5, 0.0], "rouge": [0.2, 0.9, 0.1], "shown": [1.0, 2.0, 3.0]},
        {"length": [-9.0, -4.0, -4.0], "rouge": [0.5, 0.5, 0.7], "shown": [None, None, None]},
    ]
    sums = np.concatenate([numpy_group(g["length"]) + 0.25 * numpy_group(g["rouge"]) for g in groups])
    want = (sums - sums.mean()) / (sums.std(ddof=1) + 1e-4)
    got = batch_advantages(groups, weights)
    np.testing.assert_allclose([*got[0], *got[1]], want, rtol=1e-12)
    assert got == batch_advantages(groups, weights, combine="normalize_then_sum")


def test_sum_then_normalize_weighs_before_centring() -> None:
    rewards = {"length": [-1.0, -0.5, 0.0], "rouge": [0.2, 0.9, 0.1]}
    [got] = batch_advantages([rewards], {"length": 1.0, "rouge": 2.0}, combine="sum_then_normalize")
    np.testing.assert_allclose(got, numpy_group([-0.6, 1.3, 0.2]), rtol=1e-12)


@pytest.mark.parametrize("missing", [None, float("nan"), float("inf")])
def test_a_sample_without_a_weighted_reward_leaves_the_statistics(missing: float | None) -> None:
    [got] = batch_advantages([{"length": [1.0, missing, 4.0, 2.0]}], ONE)
    assert got[1] is None
    np.testing.assert_allclose([got[0], got[2], got[3]], numpy_group([1.0, 4.0, 2.0]), rtol=1e-12)


def test_a_none_in_one_of_two_weighted_rewards_takes_the_sample_out_of_both() -> None:
    rewards = {"a": [1.0, 2.0, 3.0], "b": [0.0, None, 1.0]}
    [got] = batch_advantages([rewards], {"a": 1.0, "b": 1.0}, combine="sum_then_normalize")
    assert got[1] is None
    np.testing.assert_allclose([got[0], got[2]], numpy_group([1.0, 4.0]), rtol=1e-12)


def test_a_lone_scorable_sample_has_no_advantage() -> None:
    assert batch_advantages([{"length": [None, 1.0, None]}], ONE) == [(None, None, None)]


def test_equal_rewards_give_zero_not_infinity() -> None:
    assert batch_advantages([{"length": [0.5, 0.5]}], ONE) == [(0.0, 0.0)]


def test_rewards_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="different numbers"):
        batch_advantages([{"a": [1.0], "b": [1.0, 2.0]}], {"a": 1.0, "b": 1.0})
    with pytest.raises(ValueError, match="no reward"):
        batch_advantages([{"a": [1.0]}], {"a": 0.0})


@pytest.mark.parametrize(
    ("rewards", "weights", "want"),
    [
        ({"a": [1.0, 2.0]}, {"a": 1.0}, True),
        ({"a": [1.0, 1.0]}, {"a": 1.0}, False),
        ({"a": [1.0, None]}, {"a": 1.0}, False),
        ({"a": [1.0, None, 1.0]}, {"a": 1.0}, False),
        ({"a": [1.0, 1.0], "b": [1.0, 2.0]}, {"a": 1.0, "b": 0.0}, False),
        ({"a": [1.0, 1.0], "b": [1.0, 2.0]}, {"a": 1.0, "b": 0.5}, True),
        ({"a": [1.0, 2.0]}, {"a": 1.0, "b": 1.0}, False),
        ({"a": [1.0, 2.0], "b": [None, None]}, {"a": 1.0, "b": 0.0}, True),
        ({"a": []}, {"a": 1.0}, False),
        ({}, {"a": 1.0}, False),
    ],
)
def test_signal_needs_two_scorable_samples_that_differ(rewards, weights, want) -> None:  # type: ignore[no-untyped-def]
    assert has_signal(rewards, weights) is want


def test_parts_that_cancel_in_the_total_are_signal_only_where_they_are_normalised_first() -> None:
    rewards, weights = {"a": [1.0, 2.0, 2.0], "b": [2.0, 1.0, 1.0]}, {"a": 1.0, "b": 1.0}
    assert has_signal(rewards, weights)
    assert not has_signal(rewards, weights, "sum_then_normalize")
