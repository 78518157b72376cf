"""The figures of a run's steps, as far as alarms look at them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Figures = Mapping[str, Any]


class History:
    """Steps in order, with means over the last ones.

    Args:
        window_steps: How many steps a figure must look wrong over.
    """

    def __init__(self, window_steps: int) -> None:
        self.window_steps = window_steps
        self._steps: list[Figures] = []
        self._length_errors: list[float | None] = []

    def add(self, figures: Figures) -> bool:
        """Takes a step; one that was there before replaces it and all after it.

        Returns:
            Whether steps were dropped for it: the run was rolled back.
        """
        rolled_back = self.drop_from(int(figures["step"]))
        self._steps.append(figures)
        self._length_errors.append(self.mean("mean_abs_length_error"))
        return rolled_back

    def drop_from(self, step: int) -> bool:
        """Forgets a step and all after it; whether there were any."""
        kept = sum(int(figures["step"]) < step for figures in self._steps)
        dropped = kept < len(self._steps)
        del self._steps[kept:], self._length_errors[kept:]
        return dropped

    @property
    def count(self) -> int:
        """Steps known."""
        return len(self._steps)

    @property
    def last(self) -> Figures:
        """The newest step; there must be one."""
        return self._steps[-1]

    @property
    def window(self) -> Sequence[Figures]:
        """The last steps, at most window_steps."""
        return self._steps[-self.window_steps :]

    @property
    def before(self) -> Sequence[Figures]:
        """The window as it was before the newest step."""
        return self._steps[-self.window_steps - 1 : -1]

    def mean(self, key: str, keep: Callable[[Figures], bool] = lambda _: True) -> float | None:
        """Mean of a figure over the window.

        Args:
            key: Its name.
            keep: Which steps count.

        Returns:
            None while the window is not full, or when fewer than half of its steps have the figure.
        """
        if self.count < self.window_steps:
            return None
        return mean_of([number(figures.get(key)) for figures in self.window if keep(figures)], self.window_steps / 2)

    def first_mean(self, key: str) -> float | None:
        """The same over the first steps of the run; None before there is a whole window after them."""
        if self.count < 2 * self.window_steps:
            return None
        return mean_of([number(figures.get(key)) for figures in self._steps[: self.window_steps]], 1)

    def falls(self, key: str) -> bool:
        """Whether the newer half of the window is at least a tenth below the older half."""
        half = self.window_steps // 2
        older, newer = (
            mean_of([number(figures.get(key)) for figures in part], 1)
            for part in (self.window[:half], self.window[-half:])
        )
        return older is not None and newer is not None and newer < 0.9 * older

    def lowest_length_error(self) -> float | None:
        """The lowest mean length error that any window of the run has had."""
        return min((error for error in self._length_errors if error is not None), default=None)


def number(value: object) -> float | None:
    """A finite number, or None."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        return None
    return float(value)


def mean_of(values: Sequence[float | None], least: float) -> float | None:
    """Mean of the known values; None when fewer than `least` are known."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) >= least else None
