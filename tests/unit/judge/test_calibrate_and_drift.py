"""Labels, judgements and baselines without a judge: what is computed, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tersely.cli.judge_tools import calibration_lines, drift_lines, refuse_shift
from tersely.errors import ConfigValue, DataEmpty, DataMissing, DataRecord, JudgeShifted
from tersely.judge import drift as drift_module
from tersely.judge.calibrate import run_calibrate
from tersely.judge.drift import ANCHORS, run_drift
from tersely.judge.labels import AXES, Judgement, read_labels, read_lines

ENDPOINT = {"base_url": "http://127.0.0.1:9/v1", "model": "m"}
Scores = Callable[[str, int], float | None]


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def label(name: str, rater: str = "ann", /, **scores: int | None) -> dict[str, Any]:
    return {"id": name, "rater": rater, "labels": scores}


def judged(name: str, score: float | None) -> dict[str, Any]:
    return {"id": name, "axes": {axis: {"score": score, "reason": ""} for axis in AXES}, "judge": "m", "rubrics": "1"}


def all_axes(score: int) -> dict[str, int]:
    return dict.fromkeys(AXES, score)


def test_a_calibration_has_every_axis_the_composite_and_counts_abstentions(tmp_path: Path) -> None:
    labels = write(tmp_path / "l", [label(str(i), "ann", **all_axes(i)) for i in range(8)] + [label("none", clarity=3)])
    judgements = write(tmp_path / "j", [judged(str(i), None if i == 7 else i / 10 + 0.1) for i in range(8)])
    found = run_calibrate(labels, judgements=judgements)
    assert (found["labels"], found["summaries"], found["judge"]) == (9, 8, "m")
    for axis in (*AXES, "composite"):
        assert (found["axes"][axis]["n"], found["axes"][axis]["abstained"]) == (7, 1)
        assert found["axes"][axis]["bias"] == pytest.approx(0.1)
        assert found["axes"][axis]["spearman"] == pytest.approx(1.0)
    lines = calibration_lines(found)
    assert "bias" in lines[1]
    assert len(lines) == 2 + 5


def test_the_mean_of_raters_counts_and_their_own_agreement_is_shown(tmp_path: Path) -> None:
    rows = [label(str(i), "ann", **all_axes(i)) for i in range(6)] + [
        label(str(i), "bob", **all_axes(i + 2)) for i in range(6)
    ]
    judgements = write(tmp_path / "j", [judged(str(i), (i + 1) / 10) for i in range(6)])
    found = run_calibrate(write(tmp_path / "l", rows), judgements=judgements)
    assert found["axes"]["clarity"]["bias"] == pytest.approx(0.0)
    assert found["between_raters"]["clarity"]["mean_abs_error"] == pytest.approx(0.2)
    assert "people among themselves" in calibration_lines(found)


def test_the_last_label_of_a_rater_counts(tmp_path: Path) -> None:
    labels = write(tmp_path / "l", [label("a", clarity=1), label("a", clarity=9), label("a", "bob", clarity=None)])
    ann, bob = read_labels(labels)
    assert (dict(ann.scores), dict(bob.scores)) == ({"clarity": 0.9}, {})


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        '{"labels": {}}',
        '{"id": "a"}',
        '{"id": "a", "labels": {"beauty": 3}}',
        '{"id": "a", "labels": {"clarity": 11}}',
        '{"id": "a", "labels": {"clarity": true}}',
        '{"id": "a", "labels": {"clarity": NaN}}',
    ],
)
def test_a_bad_line_is_refused_with_its_number(tmp_path: Path, line: str) -> None:
    (tmp_path / "l").write_text('{"id": "ok", "labels": {}}\n\n' + line + "\n")
    with pytest.raises(DataRecord, match=r"l:3"):
        read_labels(tmp_path / "l")


def test_what_can_not_be_calibrated_is_refused(tmp_path: Path) -> None:
    labels = write(tmp_path / "l", [label("a", clarity=1)])
    judgements = write(tmp_path / "j", [judged("b", 0.5)])
    with pytest.raises(ConfigValue, match="either judgements or a judge"):
        run_calibrate(labels)
    with pytest.raises(ConfigValue, match="either judgements or a judge"):
        run_calibrate(labels, judgements=judgements, endpoint=ENDPOINT)
    with pytest.raises(ConfigValue, match="no document"):
        run_calibrate(labels, endpoint=ENDPOINT)
    with pytest.raises(DataEmpty, match="No id"):
        run_calibrate(labels, judgements=judgements)
    with pytest.raises(DataRecord, match="earlier line"):
        run_calibrate(labels, judgements=write(tmp_path / "j", [judged("b", 0.5)] * 2))
    with pytest.raises(DataMissing):
        run_calibrate(tmp_path / "none", judgements=judgements)
    with pytest.raises(DataEmpty):
        run_calibrate(write(tmp_path / "l", []), judgements=judgements)


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets what the judge says of (axis, number of the anchor); None abstains."""

    def install(scores: Scores, rubrics: str = "1") -> None:
        def judge_rows(rows: Sequence[dict[str, Any]], endpoint: object) -> dict[str, Judgement]:
            found = {}
            for number, row in enumerate(rows):
                said = {axis: score for axis in AXES if (score := scores(axis, number)) is not None}
                found[row["id"]] = Judgement(row["id"], said, "m", rubrics)
            return found

        monkeypatch.setattr(drift_module, "judge_rows", judge_rows)

    return install


def steady(axis: str, number: int) -> float:
    return 0.3 + 0.04 * (number % 10)


def test_the_anchors_are_as_they_were_frozen() -> None:
    rows = [fields for _, fields in read_lines(ANCHORS)]
    assert len({row["id"] for row in rows}) == 16
    assert len({row["document"] for row in rows}) == 4


def test_a_first_look_makes_the_baseline_and_a_steady_judge_passes(tmp_path: Path, judge: Callable[..., None]) -> None:
    baseline = tmp_path / "b.json"
    judge(steady)
    first = run_drift(ENDPOINT, baseline)
    assert (first["recorded"], first["axes"]) == (True, {})
    again = run_drift(ENDPOINT, baseline)
    assert not again["shifted"]
    assert [again["axes"][axis]["mean_difference"] for axis in AXES] == [0.0] * 4
    refuse_shift(again)
    assert all("steady" in line for line in drift_lines(again, baseline)[1:])


def test_noise_is_no_shift_and_a_shift_of_one_axis_is(tmp_path: Path, judge: Callable[..., None]) -> None:
    baseline = tmp_path / "b.json"
    judge(steady)
    run_drift(ENDPOINT, baseline)
    judge(lambda axis, number: steady(axis, number) + (0.03 if number % 2 else -0.03))
    assert not run_drift(ENDPOINT, baseline)["shifted"]
    judge(lambda axis, number: steady(axis, number) - (0.1 + 0.01 * (number % 3) if axis == "coverage" else 0))
    found = run_drift(ENDPOINT, baseline)
    assert [axis for axis in AXES if found["axes"][axis]["shifted"]] == ["coverage"]
    low, high = found["axes"]["coverage"]["ci95"]
    assert low <= found["axes"]["coverage"]["mean_difference"] <= high < 0
    with pytest.raises(JudgeShifted, match="coverage"):
        refuse_shift(found)


def test_a_shift_too_small_to_matter_is_shown_not_flagged(tmp_path: Path, judge: Callable[..., None]) -> None:
    judge(steady)
    run_drift(ENDPOINT, tmp_path / "b.json")
    judge(lambda axis, number: steady(axis, number) + 0.01)
    found = run_drift(ENDPOINT, tmp_path / "b.json")
    assert found["axes"]["clarity"]["p_holm"] < 0.05
    assert not found["shifted"]


def test_scores_that_are_gone_are_a_shift(tmp_path: Path, judge: Callable[..., None]) -> None:
    judge(steady)
    run_drift(ENDPOINT, tmp_path / "b.json")
    judge(lambda axis, number: None if axis == "clarity" and number % 2 else steady(axis, number))
    found = run_drift(ENDPOINT, tmp_path / "b.json")
    assert (found["axes"]["clarity"]["lost"], found["axes"]["clarity"]["shifted"]) == (8, True)
    judge(lambda axis, number: None)
    with pytest.raises(DataEmpty, match="abstained on every anchor"):
        run_drift(ENDPOINT, tmp_path / "b.json")


def test_what_can_not_be_compared_is_refused_until_recorded_anew(tmp_path: Path, judge: Callable[..., None]) -> None:
    baseline = tmp_path / "b.json"
    judge(steady)
    run_drift(ENDPOINT, baseline)
    judge(steady, rubrics="2")
    with pytest.raises(ConfigValue, match="rubrics"):
        run_drift(ENDPOINT, baseline)
    other = write(tmp_path / "a.jsonl", [{"id": "x", "document": "d", "completion": "c"}])
    with pytest.raises(ConfigValue, match="other anchors"):
        run_drift(ENDPOINT, baseline, anchors=other)
    assert run_drift(ENDPOINT, baseline, anchors=other, record=True)["recorded"]
    baseline.write_text("{}")
    with pytest.raises(DataRecord, match="no baseline"):
        run_drift(ENDPOINT, baseline)
