from __future__ import annotations

import pytest

from tersely.judge.cache import Answer
from tersely.judge.judgement import AxisResult, abstained, combine
from tersely.judge.rubrics import AXES

GOOD = AxisResult.of([Answer(0.5, "r", True)], cached=False, error="", detail="")
NONE = AxisResult.of([], cached=False, error="judge_timeout", detail="no answer in time")


def test_rounds_are_averaged_and_their_failures_left_out() -> None:
    answers = [Answer(0.4, "first", True), Answer(0.8, "second", False)]
    axis = AxisResult.of(answers, cached=True, error="judge_timeout", detail="late")
    assert (axis.score, axis.reason, axis.rounds, axis.weighted) == (pytest.approx(0.6), "first", 2, False)
    assert axis.error == ""


def test_all_axes_make_a_sum_and_a_verdict() -> None:
    good = combine(dict.fromkeys(AXES, GOOD), judge="m", rubrics="v")
    assert (good.composite, good.passed) == (2.0, True)
    weak = combine({**dict.fromkeys(AXES, GOOD), "clarity": AxisResult(0.49, "r")}, judge="m", rubrics="v")
    assert weak.passed is False
    assert "errors" not in good.as_fields()


def test_an_axis_without_a_score_leaves_neither_and_is_never_0() -> None:
    judgement = combine({**dict.fromkeys(AXES, GOOD), "coverage": NONE}, judge="m", rubrics="v")
    assert (judgement.composite, judgement.passed) == (None, None)
    fields = judgement.as_fields()
    assert fields["axes"]["coverage"]["score"] is None
    assert fields["errors"] == {"coverage": "judge_timeout: no answer in time"}


def test_who_abstains_from_all_says_why_on_every_axis() -> None:
    fields = abstained(AXES, "no_document", "none", judge="m", rubrics="v").as_fields()
    assert set(fields["errors"]) == set(AXES)
