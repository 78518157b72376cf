"""Whether a summary keeps the numbers, dates and names of its source, and makes up none: a cheap sign of faith."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from tersely.scorer.rewards.base import RewardInput, checked_choice
from tersely.scorer.rewards.fact_finding import Date, Facts, facts_of
from tersely.scorer.rewards.rouge import MEASURES


class CoverageFactsReward:
    """Numbers, dates and names in common with the source text.

    Args:
        measure: `precision`: share of the summary's different facts that stand in the source, 1 when it names none;
            `recall`: share of the source's facts that the summary kept, each weighing as often as the source names it;
            `fmeasure`: their harmonic mean.

    A date of the summary stands in the source when a date there agrees with all that it says: "March 2024" with "12
    March 2024". A name is sought among all words of the source.
    """

    name: ClassVar[str] = "coverage_facts"
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    higher_is_better: ClassVar[bool] = True
    gamed_by: ClassVar[str] = "a list of names and numbers in any relation to each other; precision by naming nothing"
    absent_reason: ClassVar[str] = "no source text, or no number, date or name in it"

    def __init__(self, *, measure: str = "fmeasure") -> None:
        self.measure = checked_choice(self.name, "measure", measure, MEASURES)

    def score(self, batch: Sequence[RewardInput]) -> list[float | None]:
        """Values in [0, 1]; None without a source, or when neither text (for recall: when the source) has a fact."""
        sources: dict[str, Facts] = {}
        values: list[float | None] = []
        for item in batch:
            if not item.document.strip():
                values.append(None)
                continue
            if item.document not in sources:
                sources[item.document] = facts_of(item.document)
            values.append(self._value(facts_of(item.text), sources[item.document]))
        return values

    def _value(self, summary: Facts, source: Facts) -> float | None:
        precision, named = _precision(summary, source)
        recall = _recall(summary, source)
        if self.measure == "recall" or (recall is None and not named):
            return recall
        if self.measure == "precision":
            return precision
        return 2 * precision * recall / (precision + recall) if recall else 0.0


def _precision(summary: Facts, source: Facts) -> tuple[float, int]:
    """Share of the summary's facts that the source supports, and how many different ones the summary has."""
    # a name of the source at the beginning of a sentence is not seen as a name in the summary alone
    names = summary.names.keys() | (source.names.keys() & summary.words)
    supported = sum(name in source.words for name in names)
    supported += sum(number in source.numbers for number in summary.numbers)
    supported += sum(any(_agrees(date, other) for other in source.dates) for date in summary.dates)
    named = len(names) + len(summary.numbers) + len(summary.dates)
    return (supported / named if named else 1.0), named


def _recall(summary: Facts, source: Facts) -> float | None:
    """Share of the source's facts, by how often it names them, that stand in the summary; None when it has none."""
    weight = source.names.total() + source.numbers.total() + source.dates.total()
    if not weight:
        return None
    kept = sum(number for name, number in source.names.items() if name in summary.words)
    kept += sum(number for value, number in source.numbers.items() if value in summary.numbers)
    kept += sum(number for date, number in source.dates.items() if any(_agrees(other, date) for other in summary.dates))
    return kept / weight


def _agrees(date: Date, other: Date) -> bool:
    """Whether `other` says all that `date` says."""
    return all(mine is None or mine == theirs for mine, theirs in zip(date, other, strict=True))
