"""Tests on paired differences, their correction for many comparisons, and what they could have found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from tersely.evaluation.intervals import CONFIDENCE, RESAMPLES, mean_interval

POWER = 0.8
ALPHA = 1 - CONFIDENCE
_EXACT_PAIRS = 13


@dataclass(frozen=True, slots=True)
class PairedTest:
    """What is known of a mean difference.

    Attributes:
        mean_difference: None without pairs.
        ci95: Bootstrap interval of it (see `mean_interval`).
        p: Two-sided t-test on the differences; 1 where all are 0, and the signed-rank p where all are equal.
        p_wilcoxon: Wilcoxon's signed-rank test, zeros as Pratt (1959) has them; exact up to 13 pairs, and up to 50
            without ties and zeros, else by the normal approximation.
        n: Pairs.
        standard_deviation: Of the differences.
    """

    mean_difference: float | None
    ci95: list[float | None]
    p: float | None
    p_wilcoxon: float | None
    n: int
    standard_deviation: float | None


def paired_test(differences: Sequence[float], resamples: int = RESAMPLES) -> PairedTest:
    """Tests whether differences, one per prompt, have mean 0."""
    data = np.asarray(differences, dtype=np.float64)
    mean, interval = mean_interval(data.tolist(), resamples)
    if data.size < 2:
        return PairedTest(mean, interval, None, None, int(data.size), None)
    spread = float(data.std(ddof=1))
    if not data.any():
        return PairedTest(mean, interval, 1.0, 1.0, int(data.size), 0.0)
    signed = _signed_rank(data)
    # Differences that are all equal have no spread to hold their mean against: only their signs speak.
    p = signed if np.ptp(data) == 0.0 else float(stats.ttest_1samp(data, 0.0).pvalue)
    return PairedTest(mean, interval, p, signed, int(data.size), spread)


def _signed_rank(data: NDArray[np.float64]) -> float:
    if data.size > _EXACT_PAIRS:
        return float(stats.wilcoxon(data, zero_method="pratt").pvalue)
    # What scipy does there too, but in one go over all signs: it takes seconds for a dozen pairs.
    ranks = stats.rankdata(abs(data)) * np.sign(data)
    found = stats.permutation_test(
        (ranks,), lambda x, axis: x.sum(axis=axis), permutation_type="samples", n_resamples=np.inf, vectorized=True
    )
    return float(found.pvalue)


@dataclass(frozen=True, slots=True)
class EqualLengthTest(PairedTest):
    """A difference of quality at equal length.

    Attributes:
        slope: Quality per token of length difference.
        extrapolated: No difference of length is 0 or beyond it on both sides: the figure lies outside what was seen.
    """

    slope: float | None
    extrapolated: bool


def equal_length_test(
    differences: Sequence[float], token_differences: Sequence[float], resamples: int = RESAMPLES
) -> EqualLengthTest:
    """The difference that remains where both summaries of a prompt are equally long.

    Least squares of the quality differences on the length differences; the intercept is the figure. Its interval is the
    percentile bootstrap over prompts, its p that of the t-test on the intercept. Without any spread of the length
    differences there is nothing to correct by: equal lengths give the plain difference, unequal ones nothing.

    Args:
        differences: Quality of b minus that of a, per prompt.
        token_differences: Length of b minus that of a, in tokens.
        resamples: Bootstrap samples.
    """
    y, x = np.asarray(differences, dtype=np.float64), np.asarray(token_differences, dtype=np.float64)
    if y.size < 3 or np.ptp(x) == 0.0:
        plain = paired_test(differences, resamples) if not x.any() else paired_test(())
        spread = plain.standard_deviation
        return EqualLengthTest(
            plain.mean_difference, plain.ci95, plain.p, None, plain.n, spread, None, extrapolated=bool(x.any())
        )
    fit = stats.linregress(x, y)
    extrapolated = bool(x.min() > 0 or x.max() < 0)
    if not np.isfinite(fit.intercept_stderr) or fit.intercept_stderr <= 1e-15 * max(1.0, abs(fit.intercept)):
        p = 1.0 if abs(fit.intercept) <= 1e-12 else None
        mean = float(fit.intercept)
        return EqualLengthTest(mean, [mean, mean], p, None, int(y.size), 0.0, float(fit.slope), extrapolated)
    p = float(2 * stats.t.sf(abs(fit.intercept / fit.intercept_stderr), y.size - 2))
    if not resamples:
        spread = float(fit.intercept_stderr * math.sqrt(y.size))
        ends: list[float | None] = [None, None]
        return EqualLengthTest(float(fit.intercept), ends, p, None, int(y.size), spread, float(fit.slope), extrapolated)
    drawn = np.random.default_rng(0).integers(0, y.size, (resamples, y.size))
    xs, ys = x[drawn], y[drawn]
    xm, ym = xs.mean(axis=1), ys.mean(axis=1)
    variance = ((xs - xm[:, None]) ** 2).sum(axis=1)
    usable = variance > 0
    slopes = ((xs - xm[:, None]) * (ys - ym[:, None])).sum(axis=1)[usable] / variance[usable]
    low, high = np.quantile(ym[usable] - slopes * xm[usable], [ALPHA / 2, 1 - ALPHA / 2])
    return EqualLengthTest(
        mean_difference=float(fit.intercept),
        ci95=[float(low), float(high)],
        p=p,
        p_wilcoxon=None,
        n=int(y.size),
        standard_deviation=float(fit.intercept_stderr * math.sqrt(y.size)),
        slope=float(fit.slope),
        extrapolated=extrapolated,
    )


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Adjusted p-values by Holm's step-down method (1979) over all that are there; None stays None."""
    known = sorted((p, index) for index, p in enumerate(values) if p is not None)
    adjusted: list[float | None] = [None] * len(values)
    largest = 0.0
    for rank, (p, index) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        adjusted[index] = largest
    return adjusted


def minimum_detectable(
    standard_deviation: float | None, n: int, *, alpha: float = ALPHA, power: float = POWER
) -> float | None:
    """Smallest true mean difference that a two-sided paired t-test finds with that power.

    Args:
        standard_deviation: Of the differences.
        n: Pairs.
        alpha: Level of the test; alpha / m for the strictest of m tests under Holm.
        power: Chance to find it.

    Returns:
        In the unit of the differences; None where it can't be said (fewer than three pairs, or no spread).
    """
    if not standard_deviation or n < 3:
        return None
    df, critical = n - 1, float(stats.t.ppf(1 - alpha / 2, n - 1))

    def missing(effect: float) -> float:
        # The far tail, a finding in the wrong direction, has no weight at any power worth asking for.
        return float(stats.nct.sf(critical, df, effect * math.sqrt(n))) - power

    # The root lies near the normal approximation.
    near = (critical + float(stats.t.ppf(power, df))) / math.sqrt(n)
    return float(optimize.brentq(missing, 0.3 * near, 1.5 * near)) * standard_deviation
