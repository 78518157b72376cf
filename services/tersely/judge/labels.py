"""Lines of labels (what people say of summaries) and of judgements (what a judge says), read with care."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tersely.errors import DataEmpty, DataMissing, DataRecord

AXES = ("faithfulness", "coverage", "conciseness", "clarity")
HIGHEST = 10
"""People label on the rubrics' scale, 0 to 10; results are on 0 to 1."""


@dataclass(frozen=True, slots=True)
class Label:
    """What one person says of one summary.

    Attributes:
        id: Id of the summary.
        rater: Who; empty when the line does not say.
        scores: Axis -> 0 to 1; axes left open are missing.
        document: Source text; may be empty where judgements are at hand.
        completion: The summary.
    """

    id: str
    rater: str
    scores: Mapping[str, float]
    document: str
    completion: str


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a judge says of one summary: axis -> 0 to 1, axes it abstained on missing."""

    id: str
    scores: Mapping[str, float]
    judge: str
    rubrics: str


def read_labels(path: Path) -> list[Label]:
    """Reads lines ``{"id", "labels": {axis: 0 to 10 or null}, "document"?, "completion"?, "rater"?}``.

    The last line of a rater on an id counts: who changes his mind labels again.

    Raises:
        DataMissing: The file can't be read.
        DataEmpty: It has no line.
        DataRecord: A line is not of that shape.
    """
    found: dict[tuple[str, str], Label] = {}
    for where, fields in read_lines(path):
        label = _label(fields, where)
        found[label.id, label.rater] = label
    if not found:
        raise DataEmpty(f"{path} has no label.", "Make some with: tersely label FILE -o LABELS")
    return list(found.values())


def read_judgements(path: Path) -> dict[str, Judgement]:
    """Reads what `tersely judge-file` writes, by id.

    Raises:
        DataMissing, DataRecord.
    """
    found: dict[str, Judgement] = {}
    for where, fields in read_lines(path):
        judgement = judgement_from(fields, where)
        if judgement.id in found:
            raise DataRecord(f"{where}: the id {judgement.id!r} was judged in an earlier line.", "Make ids unique.")
        found[judgement.id] = judgement
    return found


def judgement_from(fields: Mapping[str, Any], where: str) -> Judgement:
    """One judgement.

    Raises:
        DataRecord: It lacks an id or axes, or a score is out of 0 to 1.
    """
    axes = fields.get("axes")
    if not isinstance(axes, dict):
        raise DataRecord(f"{where}: there is no object 'axes'.", "Give a file that tersely judge-file wrote.")
    scores = {}
    for axis in AXES:
        entry = axes.get(axis)
        score = entry.get("score") if isinstance(entry, dict) else entry
        if score is not None:
            scores[axis] = _number(score, 1.0, f"{where}: axes.{axis}")
    return Judgement(_id(fields, where), scores, str(fields.get("judge", "")), str(fields.get("rubrics", "")))


def read_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file:line, object) of each line that is not blank.

    Raises:
        DataMissing: The file can't be read.
        DataRecord: A line is no JSON object.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataMissing(f"{path} can't be read: {error.strerror}.", "Check its name and permissions.") from None
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError):
            fields = None
        if not isinstance(fields, dict):
            raise DataRecord(f"{where}: the line is not a JSON object.", "Mend or remove it.")
        yield where, fields


def _label(fields: Mapping[str, Any], where: str) -> Label:
    labels = fields.get("labels")
    if not isinstance(labels, dict):
        raise DataRecord(f"{where}: there is no object 'labels'.", 'Write {"id": ..., "labels": {"clarity": 7, ...}}.')
    unknown = sorted(set(labels) - set(AXES))
    if unknown:
        raise DataRecord(f"{where}: there is no axis {unknown[0]!r}.", f"The axes are {', '.join(AXES)}.")
    scores = {
        axis: _number(value, HIGHEST, f"{where}: labels.{axis}") / HIGHEST
        for axis, value in labels.items()
        if value is not None
    }
    rater, document, completion = (str(fields.get(name) or "") for name in ("rater", "document", "completion"))
    return Label(_id(fields, where), rater, scores, document, completion)


def _id(fields: Mapping[str, Any], where: str) -> str:
    found = fields.get("id")
    if isinstance(found, bool) or not isinstance(found, str | int) or found == "":
        raise DataRecord(f"{where}: the field 'id' is neither text nor a whole number.", "Give each line an id.")
    return str(found)


def _number(value: object, highest: float, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= highest:
        raise DataRecord(f"{what} is {value!r}; it must be a number from 0 to {highest:g}, or null.", "Mend the line.")
    return float(value)
