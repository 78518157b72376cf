"""`tersely judge calibrate`: how a judge's scores go with those of people, axis by axis."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from tersely.errors import ConfigValue, DataEmpty
from tersely.judge.agreement import agreement
from tersely.judge.asking import Endpoint, judge_rows
from tersely.judge.labels import AXES, Judgement, Label, read_judgements, read_labels

COMPOSITE = "composite"


def run_calibrate(
    labels: Path, *, judgements: Path | None = None, endpoint: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Holds judgements against labels.

    Args:
        labels: File of labels (see `read_labels`).
        judgements: File of `tersely judge-file`; none: the endpoint judges the labelled summaries now.
        endpoint: Who judges then: the fields of `Endpoint`.

    Returns:
        ``{"kind": "calibration", "judge", "rubrics", "labels", "summaries", "raters", "axes", "between_raters"}``; per
        axis the fields of `Agreement` and `abstained`, the summaries that people scored and the judge did not.
        The axis `composite` is the mean of the four on 0 to 1, over summaries with all four from both sides.
        `between_raters` has the same figures of each rater against the mean of the others, the most that a judge can
        be asked for; empty with one rater.

    Raises:
        ConfigValue: Neither or both of judgements and endpoint are given, or texts to judge are missing.
        DataMissing, DataEmpty, DataRecord: As in `read_labels`; DataEmpty when no id is in both.
        TerselyError: Whatever the judging raises.
    """
    if (judgements is None) == (endpoint is None):
        raise ConfigValue(
            "Calibration needs either judgements or a judge.",
            "Give --judgements FILE (from tersely judge-file), or --base-url and --model.",
        )
    given = read_labels(labels)
    judged = judge_rows(_rows(given), Endpoint(**endpoint)) if endpoint else read_judgements(judgements or Path())
    by_id: dict[str, list[Label]] = {}
    for label in given:
        by_id.setdefault(label.id, []).append(label)
    both = [name for name in by_id if name in judged]
    if not both:
        raise DataEmpty(
            f"No id of {labels} is among the judgements.", "Judge the file that was labelled: ids must be the same."
        )
    people = {name: _mean_scores(by_id[name]) for name in both}
    return {
        "kind": "calibration",
        "judge": _only(judged[name].judge for name in both),
        "rubrics": _only(judged[name].rubrics for name in both),
        "labels": len(given),
        "summaries": len(both),
        "raters": sorted({label.rater for label in given}),
        "axes": {axis: _axis(axis, both, judged, people) for axis in (*AXES, COMPOSITE)},
        "between_raters": _between_raters(by_id),
    }


def _rows(labels: Sequence[Label]) -> list[dict[str, str]]:
    rows: dict[str, dict[str, str]] = {}
    for label in labels:
        if not label.document.strip():
            raise ConfigValue(
                f"The label of {label.id!r} has no document, so its summary can't be judged.",
                "Label with tersely label, which copies the texts, or give --judgements.",
            )
        rows[label.id] = {"id": label.id, "document": label.document, "completion": label.completion}
    return list(rows.values())


def _axis(
    axis: str, ids: Sequence[str], judged: Mapping[str, Judgement], people: Mapping[str, Mapping[str, float]]
) -> dict[str, Any]:
    labelled = [name for name in ids if _score(people[name], axis) is not None]
    pairs = [
        (score, _score(people[name], axis))
        for name in labelled
        if (score := _score(judged[name].scores, axis)) is not None
    ]
    found = agreement([a for a, _ in pairs], [b for _, b in pairs if b is not None])
    return {**found.as_dict(), "abstained": len(labelled) - len(pairs)}


def _score(scores: Mapping[str, float], axis: str) -> float | None:
    if axis != COMPOSITE:
        return scores.get(axis)
    return fmean(scores[each] for each in AXES) if all(each in scores for each in AXES) else None


def _mean_scores(labels: Sequence[Label]) -> dict[str, float]:
    """The mean over raters, per axis that at least one of them scored."""
    columns = {axis: [label.scores[axis] for label in labels if axis in label.scores] for axis in AXES}
    return {axis: fmean(values) for axis, values in columns.items() if values}


def _between_raters(by_id: Mapping[str, Sequence[Label]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for axis in AXES:
        ones: list[float] = []
        others: list[float] = []
        for labels in by_id.values():
            scores = [label.scores[axis] for label in labels if axis in label.scores]
            if len(scores) < 2:
                continue
            for index, score in enumerate(scores):
                ones.append(score)
                others.append(fmean(scores[:index] + scores[index + 1 :]))
        if ones:
            found[axis] = agreement(ones, others).as_dict()
    return found


def _only(values: Iterable[str]) -> str:
    """The value that all share; several joined, so that a mixture shows."""
    return ", ".join(sorted({value for value in values if value}))
