"""Means over rows as they are written."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any


class Tally:
    """Per reward: how many values there are, their mean, least and most, and why others are missing.

    Args:
        rewards: Names, in the order of the figures.
    """

    def __init__(self, rewards: Sequence[str]) -> None:
        self._values: dict[str, _Column] = {name: _Column() for name in rewards}

    def add(self, row: Mapping[str, Any]) -> None:
        """Counts an output row."""
        for name, column in self._values.items():
            column.add(row["rewards"][name], row.get("errors", {}).get(name, ""))

    def figures(self) -> dict[str, dict[str, Any]]:
        """{"mean", "least", "most", "scored", "absent", "reasons": {reason: rows}} by reward; null without values."""
        return {name: column.figures() for name, column in self._values.items()}


class _Column:
    MOST_REASONS = 20

    def __init__(self) -> None:
        self.scored = self.absent = 0
        self.least, self.most = math.inf, -math.inf
        self.sum = 0.0
        self.reasons: dict[str, int] = {}

    def add(self, value: float | None, reason: str) -> None:
        if value is None:
            self.absent += 1
            kept = reason if reason in self.reasons or len(self.reasons) < self.MOST_REASONS else "other reasons"
            self.reasons[kept] = self.reasons.get(kept, 0) + 1
            return
        self.scored += 1
        self.least, self.most = min(self.least, value), max(self.most, value)
        self.sum += value

    def figures(self) -> dict[str, Any]:
        return {
            "mean": self.sum / self.scored if self.scored else None,
            "least": self.least if self.scored else None,
            "most": self.most if self.scored else None,
            "scored": self.scored,
            "absent": self.absent,
            "reasons": self.reasons,
        }
