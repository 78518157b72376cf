"""What a judge says of a summary: four axes, their sum, and whether it passes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Self

from tersely.judge.cache import Answer
from tersely.judge.rubrics import PASS_MARK


@dataclass(frozen=True, slots=True)
class AxisResult:
    """One axis.

    Attributes:
        score: 0 to 1, the mean of the rounds that were answered; None when the judge abstained.
        reason: The judge's words in the first of them.
        error: Why the judge abstained; empty with a score.
        detail: What happened, in words; empty with a score.
        rounds: Rounds that were answered.
        cached: Whether all of them came from the cache.
        weighted: Whether all of them were weighted with token probabilities.
    """

    score: float | None
    reason: str
    error: str = ""
    detail: str = ""
    rounds: int = 0
    cached: bool = False
    weighted: bool = False

    @classmethod
    def of(cls, answers: Sequence[Answer], *, cached: bool, error: str, detail: str) -> Self:
        """The result of the rounds that were answered; without any, of the reason why."""
        if not answers:
            return cls(None, "", error, detail)
        return cls(
            score=fmean(answer.score for answer in answers),
            reason=answers[0].reason,
            rounds=len(answers),
            cached=cached,
            weighted=all(answer.weighted for answer in answers),
        )


@dataclass(frozen=True, slots=True)
class Judgement:
    """A summary judged.

    Attributes:
        axes: By name, in the rubrics' order.
        composite: Sum of the scores, 0 to 4; None when one is missing.
        passed: Whether every score is 0.5 or more; None when one is missing.
        judge: Name of the model.
        rubrics: Version id of the rubrics.
        tokens: Tokens that were used for it, both ways.
        calls: Calls made for it.
    """

    axes: Mapping[str, AxisResult]
    composite: float | None
    passed: bool | None
    judge: str
    rubrics: str
    tokens: int = 0
    calls: int = 0

    def as_fields(self) -> dict[str, Any]:
        """As a line of `tersely judge-file` has it, the id apart."""
        fields: dict[str, Any] = {
            "axes": {name: {"score": axis.score, "reason": axis.reason} for name, axis in self.axes.items()},
            "composite": self.composite,
            "passed": self.passed,
            "judge": self.judge,
            "rubrics": self.rubrics,
        }
        errors = {name: f"{axis.error}: {axis.detail}" for name, axis in self.axes.items() if axis.score is None}
        return {**fields, "errors": errors} if errors else fields


def combine(axes: Mapping[str, AxisResult], *, judge: str, rubrics: str, tokens: int = 0, calls: int = 0) -> Judgement:
    """A judgement of its axes; without a sum and a verdict where one has no score."""
    scores = [axis.score for axis in axes.values()]
    known = [score for score in scores if score is not None]
    whole = len(known) == len(scores)
    return Judgement(
        axes=axes,
        composite=sum(known) if whole else None,
        passed=all(score >= PASS_MARK for score in known) if whole else None,
        judge=judge,
        rubrics=rubrics,
        tokens=tokens,
        calls=calls,
    )


def abstained(names: Sequence[str], error: str, detail: str, *, judge: str, rubrics: str) -> Judgement:
    """A judgement without any score."""
    return combine({name: AxisResult(None, "", error, detail) for name in names}, judge=judge, rubrics=rubrics)
