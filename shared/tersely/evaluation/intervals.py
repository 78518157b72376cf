"""Means with bootstrap intervals."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from scipy import stats

RESAMPLES = 9_999
CONFIDENCE = 0.95


def mean_interval(values: Sequence[float], resamples: int = RESAMPLES) -> tuple[float | None, list[float | None]]:
    """The mean and its 95 % interval: bias-corrected and accelerated bootstrap (Efron 1987), with a fixed seed.

    Args:
        values: One per prompt; prompts are what is drawn again.
        resamples: Bootstrap samples; 0: no interval.

    Returns:
        Mean (None without values) and [low, high]: the mean itself where all values are equal, None where there are
        fewer than two values.
    """
    data = np.asarray(values, dtype=np.float64)
    if data.size == 0:
        return None, [None, None]
    mean = float(data.mean())
    if data.size < 2 or not resamples:
        return mean, [None, None]
    if np.ptp(data) == 0.0:
        return mean, [mean, mean]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        interval = stats.bootstrap(
            (data,),
            np.mean,
            n_resamples=resamples,
            confidence_level=CONFIDENCE,
            method="BCa",
            rng=np.random.default_rng(0),
        ).confidence_interval
    low, high = float(interval.low), float(interval.high)
    return mean, [low, high] if np.isfinite((low, high)).all() else [None, None]
