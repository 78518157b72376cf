"""Paired tests, equal length, Holm and power, held against textbook values, scipy and simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from tersely.evaluation.intervals import mean_interval
from tersely.evaluation.significance import equal_length_test, holm, minimum_detectable, paired_test


def test_p_values_are_those_of_scipy() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(0, 1, 30), rng.normal(0.4, 1, 30)
    found = paired_test((b - a).tolist())
    assert found.p == pytest.approx(stats.ttest_rel(b, a).pvalue)
    assert found.p_wilcoxon == pytest.approx(stats.wilcoxon(b - a).pvalue)
    assert found.mean_difference == pytest.approx((b - a).mean())
    low, high = found.ci95
    assert low is not None
    assert high is not None
    assert low < (b - a).mean() < high


@pytest.mark.parametrize("values", [[0.3, -0.1, 0.5, 0.2, 0.9], [1, 1, 0, -1, 2, 0, 1], [0.0, 1.0]])
def test_the_signed_rank_test_of_a_few_pairs_is_scipys_exact_one(values: list[float]) -> None:
    exact = stats.wilcoxon(values, zero_method="pratt", method=stats.PermutationMethod(n_resamples=1 << 8))
    assert paired_test(values).p_wilcoxon == pytest.approx(exact.pvalue)


def test_equal_values_are_no_finding_and_a_constant_shift_is_judged_by_signs() -> None:
    same = paired_test([0.0] * 20)
    assert (same.p, same.p_wilcoxon, same.ci95) == (1.0, 1.0, [0.0, 0.0])
    shift = paired_test([0.5] * 4)
    assert shift.p == shift.p_wilcoxon == pytest.approx(0.125)


@pytest.mark.parametrize("values", [[], [0.3]])
def test_too_few_pairs_have_no_p(values: list[float]) -> None:
    found = paired_test(values)
    assert (found.p, found.p_wilcoxon, found.ci95, found.n) == (None, None, [None, None], len(values))


def test_holm_on_a_textbook_example_keeps_order_and_gaps() -> None:
    assert holm([0.01, None, 0.04, 0.03, 0.005]) == [
        pytest.approx(0.03),
        None,
        pytest.approx(0.06),
        pytest.approx(0.06),
        pytest.approx(0.02),
    ]
    assert holm([0.7, 0.9]) == [1.0, 1.0]


def test_the_interval_covers_the_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(200):
        _, (low, high) = mean_interval(rng.exponential(1.0, 40).tolist(), resamples=499)
        assert low is not None
        assert high is not None
        covered += low <= 1.0 <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_quality_that_only_follows_length_is_no_difference_at_equal_length() -> None:
    rng = np.random.default_rng(3)
    tokens = rng.normal(20, 15, 60)
    quality = 0.01 * tokens + rng.normal(0, 0.02, 60)
    plain, fair = paired_test(quality.tolist()), equal_length_test(quality.tolist(), tokens.tolist())
    assert plain.p is not None
    assert plain.p < 1e-6
    assert fair.p is not None
    assert fair.p > 0.05
    assert fair.slope == pytest.approx(0.01, abs=0.001)
    assert not fair.extrapolated


def test_equal_length_says_when_it_had_to_extrapolate_and_when_it_can_say_nothing() -> None:
    rng = np.random.default_rng(4)
    assert equal_length_test(rng.normal(0, 1, 20).tolist(), rng.uniform(5, 9, 20).tolist()).extrapolated
    nothing = equal_length_test([0.1, 0.2, 0.3], [7, 7, 7])
    assert (nothing.mean_difference, nothing.p, nothing.extrapolated) == (None, None, True)
    plain = equal_length_test([0.1, 0.2, 0.3], [0, 0, 0])
    assert plain.mean_difference == pytest.approx(0.2)
    assert not plain.extrapolated


def test_the_detectable_difference_is_found_as_often_as_promised() -> None:
    effect = minimum_detectable(2.0, 40)
    assert effect is not None
    data = np.random.default_rng(5).normal(effect, 2.0, (4000, 40))
    found = (stats.ttest_1samp(data, 0.0, axis=1).pvalue < 0.05).mean()
    assert found == pytest.approx(0.8, abs=0.025)
    assert minimum_detectable(2.0, 40, alpha=0.05 / 30) > effect  # type: ignore[operator]
    assert minimum_detectable(0.0, 40) is None
    assert minimum_detectable(1.0, 2) is None
