"""`tersely judge drift`: whether a judge still says of a frozen set of summaries what it said before."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tersely.errors import ConfigValue, DataEmpty, DataRecord
from tersely.evaluation.significance import ALPHA, holm, paired_test
from tersely.judge.asking import Endpoint, judge_rows
from tersely.judge.labels import AXES, Judgement, judgement_from, read_lines
from tersely.telemetry.atomic import write_atomic

ANCHORS = Path(__file__).with_name("anchors.jsonl")
"""Sixteen summaries of four short documents, from faithful to garbled; never changed, only followed by a new set."""
TOLERANCE = 0.02
"""Mean shift, on 0 to 1, below which a significant one is shown but not flagged."""


def run_drift(
    endpoint: Mapping[str, Any],
    baseline: Path,
    *,
    record: bool = False,
    anchors: Path = ANCHORS,
    tolerance: float = TOLERANCE,
) -> dict[str, Any]:
    """Judges the anchors anew, past every cache, and holds the scores against those of the baseline.

    Args:
        endpoint: Who judges: the fields of `Endpoint`.
        baseline: File with the first scores; made when it does not exist.
        record: Make it anew.
        anchors: Lines {"id", "document", "completion"}.
        tolerance: Mean shift from which on a significant one is flagged.

    Returns:
        ``{"kind": "drift", "judge", "judge_then", "rubrics", "recorded", "shifted", "axes": {axis: {"n",
        "mean_difference", "ci95", "p", "p_holm", "lost", "shifted"}}}``. `mean_difference` is now minus then on 0 to 1,
        `lost` counts anchors with a score then and none now, p_holm is corrected over the axes. An axis is flagged when
        p_holm < 0.05 and the shift is at least the tolerance, or when half of its scores are lost. When the baseline
        was made by this call, `recorded` is true and `axes` is empty.

    Raises:
        ConfigValue: The baseline is of other anchors or rubrics.
        DataMissing, DataRecord, DataEmpty: The anchors or the baseline can't be read, or nothing could be judged.
        TerselyError: Whatever the judging raises.
    """
    rows = [fields for _, fields in read_lines(anchors)]
    identity = hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()[:16]
    then = None if record or not baseline.exists() else _read_baseline(baseline, identity)
    asked = Endpoint(**endpoint)
    judged = judge_rows(rows, asked)
    if not any(judgement.scores for judgement in judged.values()):
        raise DataEmpty("The judge abstained on every anchor.", "Look at what the endpoint answers: judge one file.")
    first = next(iter(judged.values()))
    found: dict[str, Any] = {"kind": "drift", "judge": first.judge or asked.model, "rubrics": first.rubrics}
    if then is None:
        _write_baseline(baseline, identity, judged, found)
        return {**found, "judge_then": found["judge"], "recorded": True, "shifted": False, "axes": {}}
    before, about = then
    if about["rubrics"] != first.rubrics:
        raise ConfigValue(
            f"{baseline} was made with the rubrics {about['rubrics']}, these are {first.rubrics}: scores of different"
            " rubrics can't be compared.",
            "Make a new baseline with --record.",
        )
    axes = _compare(before, judged, tolerance)
    shifted = any(axis["shifted"] for axis in axes.values())
    return {**found, "judge_then": about["judge"], "recorded": False, "shifted": shifted, "axes": axes}


def _compare(
    before: Mapping[str, Judgement], now: Mapping[str, Judgement], tolerance: float
) -> dict[str, dict[str, Any]]:
    tests, lost, had = {}, {}, {}
    for axis in AXES:
        scored = [name for name, judgement in before.items() if axis in judgement.scores]
        both = [name for name in scored if name in now and axis in now[name].scores]
        tests[axis] = paired_test([round(now[name].scores[axis] - before[name].scores[axis], 12) for name in both])
        had[axis], lost[axis] = len(scored), len(scored) - len(both)
    corrected = dict(zip(AXES, holm([tests[axis].p for axis in AXES]), strict=True))
    axes: dict[str, dict[str, Any]] = {}
    for axis in AXES:
        test, p = tests[axis], corrected[axis]
        moved = p is not None and p < ALPHA and abs(test.mean_difference or 0.0) >= tolerance
        axes[axis] = {
            "n": test.n,
            "mean_difference": test.mean_difference,
            "ci95": test.ci95,
            "p": test.p,
            "p_holm": p,
            "lost": lost[axis],
            "shifted": moved or (lost[axis] > 0 and 2 * lost[axis] >= had[axis]),
        }
    return axes


def _write_baseline(path: Path, identity: str, judged: Mapping[str, Judgement], about: Mapping[str, Any]) -> None:
    tree = {
        "kind": "judge_baseline",
        "judge": about["judge"],
        "rubrics": about["rubrics"],
        "anchors": identity,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "scores": [{"id": each.id, "axes": dict(each.scores)} for each in judged.values()],
    }
    write_atomic(path, json.dumps(tree, indent=1) + "\n")


def _read_baseline(path: Path, identity: str) -> tuple[dict[str, Judgement], dict[str, Any]]:
    try:
        tree = json.loads(path.read_text())
        kind, scores = tree["kind"], tree["scores"]
    except (OSError, ValueError, KeyError, TypeError):
        kind, scores = None, ()
    if kind != "judge_baseline":
        raise DataRecord(f"{path} is no baseline of a judge.", "Name another file, or make it anew with --record.")
    if tree["anchors"] != identity:
        raise ConfigValue(f"{path} was made with other anchors.", "Make a new baseline with --record.")
    return _by_id([judgement_from(each, str(path)) for each in scores]), tree


def _by_id(judgements: Sequence[Judgement]) -> dict[str, Judgement]:
    return {judgement.id: judgement for judgement in judgements}
