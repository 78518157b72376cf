"""How far two columns of scores agree: rank correlation, weighted kappa, bias; each with its interval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from tersely.evaluation.intervals import CONFIDENCE, mean_interval

RESAMPLES = 2_000
LEVELS = 11
"""Whole scores 0 to 10, the scale of the rubrics."""
FEWEST = 5
"""Pairs below which an interval of a correlation says nothing and is left out."""

Column = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Agreement:
    """A judge against people on one axis.

    Attributes:
        n: Pairs with both scores.
        spearman: Rank correlation; None where one side never varies, or with fewer than 3 pairs.
        spearman_ci95: Percentile bootstrap over pairs; None with fewer than five.
        kappa: Quadratically weighted kappa of the scores rounded to 0 to 10 (Cohen 1968); None where chance agreement
            is perfect, or with fewer than 2 pairs.
        kappa_ci95: As for spearman.
        bias: Mean of judge minus people, on the scale of 0 to 1; above 0 the judge is kinder.
        bias_ci95: BCa bootstrap.
        mean_abs_error: Mean distance, on the scale of 0 to 1.
    """

    n: int
    spearman: float | None
    spearman_ci95: list[float | None]
    kappa: float | None
    kappa_ci95: list[float | None]
    bias: float | None
    bias_ci95: list[float | None]
    mean_abs_error: float | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def agreement(judge: Sequence[float], people: Sequence[float]) -> Agreement:
    """Compares two columns of scores from 0 to 1, one pair per summary.

    Args:
        judge: The judge's.
        people: The mean of those who labelled it.
    """
    a, b = np.asarray(judge, dtype=np.float64), np.asarray(people, dtype=np.float64)
    bias, bias_interval = mean_interval(np.round(a - b, 12).tolist())
    return Agreement(
        n=int(a.size),
        spearman=spearman(a, b),
        spearman_ci95=_interval(_spearman, a, b),
        kappa=weighted_kappa(a, b),
        kappa_ci95=_interval(_kappa, a, b),
        bias=bias,
        bias_ci95=bias_interval,
        mean_abs_error=float(np.abs(a - b).mean()) if a.size else None,
    )


def spearman(a: Column, b: Column) -> float | None:
    """Rank correlation with ties at their mean rank; None where it is not defined."""
    return _first(_spearman(a[None], b[None])) if a.size >= 3 else None


def weighted_kappa(a: Column, b: Column) -> float | None:
    """1 - observed over expected squared distance (Cohen 1968, quadratic weights) of scores rounded to 0 to 10."""
    return _first(_kappa(a[None], b[None])) if a.size >= 2 else None


def _spearman(a: Column, b: Column) -> Column:
    """Per row; NaN where one side does not vary."""
    x, y = (stats.rankdata(rows, axis=1) for rows in (a, b))
    x, y = (ranks - ranks.mean(axis=1, keepdims=True) for ranks in (x, y))
    return _ratio((x * y).sum(axis=1), np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1)))


def _kappa(a: Column, b: Column) -> Column:
    """Per row; NaN where all scores on both sides are the same. With quadratic weights the expected distance of the two
    histograms is that of all pairs: both variances and the square of the means' distance.
    """
    x, y = (np.rint(rows * (LEVELS - 1)) for rows in (a, b))
    expected = x.var(axis=1) + y.var(axis=1) + (x.mean(axis=1) - y.mean(axis=1)) ** 2
    return 1.0 - _ratio(((x - y) ** 2).mean(axis=1), expected)


def _ratio(over: Column, under: Column) -> Column:
    shares: Column = np.divide(over, under, out=np.full(over.shape, np.nan), where=under > 0)
    return shares


def _first(values: Column) -> float | None:
    return float(values[0]) if np.isfinite(values[0]) else None


def _interval(measure: Callable[[Column, Column], Column], a: Column, b: Column) -> list[float | None]:
    """Percentile bootstrap over pairs; resamples on which the measure is not defined are left out."""
    if a.size < FEWEST:
        return [None, None]
    drawn = np.random.default_rng(0).integers(0, a.size, (RESAMPLES, a.size))
    values = measure(a[drawn], b[drawn])
    values = values[np.isfinite(values)]
    if len(values) < RESAMPLES // 2:
        return [None, None]
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return [float(low), float(high)]
