"""Paired comparison of two policies, prompt by prompt."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy import stats

BOOTSTRAP_RESAMPLES = 9_999
CONFIDENCE = 0.95


def paired_difference(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float | int | None]:
    """Mean of after - before over the prompts that have both, with a bootstrap interval.

    The interval is the bias-corrected and accelerated bootstrap (Efron 1987) over prompts, as scipy computes it, with a
    fixed seed. Fewer than two prompts, or differences that are all equal, have no interval beyond the mean itself.

    Returns:
        ``{"mean", "low", "high", "n"}``; mean, low and high are None when no prompt has both.
    """
    both = [key for key in before if key in after]
    differences = np.array([after[key] - before[key] for key in both], dtype=np.float64)
    if len(both) == 0:
        return {"mean": None, "low": None, "high": None, "n": 0}
    mean = float(differences.mean())
    if np.ptp(differences) == 0.0:
        return {"mean": mean, "low": mean, "high": mean, "n": len(both)}
    interval = stats.bootstrap(
        (differences,),
        np.mean,
        n_resamples=BOOTSTRAP_RESAMPLES,
        confidence_level=CONFIDENCE,
        method="BCa",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return {"mean": mean, "low": float(interval.low), "high": float(interval.high), "n": len(both)}
