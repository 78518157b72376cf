"""The learning rate of a step: a pure function."""

from __future__ import annotations

import math

from tersely.config.learner import LearnerSection


def learning_rate(section: LearnerSection, step: int, total_steps: int) -> float:
    """Rate of a step that counts from 1.

    It rises linearly over the warm-up steps, whose last has the peak rate; then stays, or falls along a line or half a
    cosine to `final_learning_rate_ratio` of the peak, which the last step has.
    """
    peak = section.learning_rate
    if step <= section.warmup_steps:
        return peak * step / section.warmup_steps
    if section.schedule == "constant":
        return peak
    falling = max(1, total_steps - section.warmup_steps - 1)
    progress = min(1.0, (step - section.warmup_steps - 1) / falling)
    if section.schedule == "cosine":
        progress = (1 - math.cos(math.pi * progress)) / 2
    return peak * (1 - (1 - section.final_learning_rate_ratio) * progress)
