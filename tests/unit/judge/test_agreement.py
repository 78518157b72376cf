"""Agreement against scikit-learn and worked examples."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import cohen_kappa_score  # type: ignore[import-untyped]

from tersely.judge.agreement import agreement, weighted_kappa


def columns(seed: int, n: int = 60) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    people = rng.integers(0, 11, n)
    return np.clip(people + rng.integers(-3, 5, n), 0, 10), people


@pytest.mark.parametrize("seed", range(5))
def test_kappa_is_that_of_scikit_learn(seed: int) -> None:
    judge, people = columns(seed)
    expected = cohen_kappa_score(judge, people, weights="quadratic", labels=list(range(11)))
    assert weighted_kappa(judge / 10, people / 10) == pytest.approx(expected, abs=1e-12)


def test_perfect_agreement() -> None:
    _, people = columns(0)
    found = agreement((people / 10).tolist(), (people / 10).tolist())
    assert [found.spearman, found.kappa, found.bias, found.mean_abs_error] == pytest.approx([1.0, 1.0, 0.0, 0.0])
    assert found.spearman_ci95 == [pytest.approx(1.0), pytest.approx(1.0)]


def test_a_kind_judge_keeps_the_ranks_and_shows_its_bias() -> None:
    people = [i / 20 for i in range(16)]
    found = agreement([value + 0.2 for value in people], people)
    assert found.spearman == pytest.approx(1.0)
    assert found.bias == pytest.approx(0.2)
    assert found.kappa is not None
    assert found.kappa < 0.9


def test_intervals_hold_the_value_and_narrow_with_more_pairs() -> None:
    def width(n: int) -> float:
        judge, people = columns(3, n)
        found = agreement((judge / 10).tolist(), (people / 10).tolist())
        low, high = found.spearman_ci95
        assert low is not None
        assert high is not None
        assert found.spearman is not None
        assert low <= found.spearman <= high
        return high - low

    assert width(200) < width(20)


def test_a_judge_that_always_says_the_same_has_no_correlation() -> None:
    found = agreement([0.7] * 8, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8])
    assert found.spearman is None
    assert found.spearman_ci95 == [None, None]
    assert found.bias is not None


def test_few_pairs_have_no_figures_they_can_not_bear() -> None:
    nothing = agreement([], [])
    assert (nothing.n, nothing.spearman, nothing.kappa, nothing.bias) == (0, None, None, None)
    one = agreement([0.5], [0.6])
    assert (one.kappa, one.bias_ci95) == (None, [None, None])
    assert agreement([0.5, 0.5], [0.5, 0.5]).kappa is None
