"""`tersely label`: what a rater types becomes labels, at once, and can be gone on with."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tersely.cli.label import ask_about, draw, printable, read_rows, this_week
from tersely.cli.main import app
from tersely.errors import DataEmpty, DataMissing, DataRecord
from tersely.judge.labels import read_labels

ROW = {"id": "a", "document": "The document.", "completion": "The summary."}


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    lines = [{"id": f"r{i}", "document": f"document {i}", "completion": f"summary {i}", "score": i} for i in range(9)]
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return path


def answered(*answers: str) -> tuple[dict[str, int | None] | None, list[str]]:
    left, said = list(answers), list[str]()
    scores = ask_about(ROW, lambda question: left.pop(0), said.append)
    assert left == []
    return scores, said


def test_four_answers_make_a_label() -> None:
    scores, said = answered("7", " 10 ", "", "0")
    assert scores == {"faithfulness": 7, "coverage": 10, "conciseness": None, "clarity": 0}
    assert "The document." in said


def test_wrong_answers_are_asked_again_and_back_goes_back() -> None:
    scores, said = answered("11", "-1", "7.5", "\u0667", "b", "1", "2", "b", "3", "4", "5")
    assert scores == {"faithfulness": 1, "coverage": 3, "conciseness": 4, "clarity": 5}
    assert len([line for line in said if line.startswith("0 to 10")]) == 4


def test_skipping_leaves_no_label_and_stopping_ends() -> None:
    assert answered("5", "s")[0] == {}
    assert answered("5", "q")[0] is None


def test_a_summary_can_not_move_the_cursor_or_turn_text_round() -> None:
    assert printable("a\x1b[2Jb\u202ec") == "a [2Jb c"


def test_a_sample_depends_on_the_rotation_alone(rows: Path) -> None:
    listed = read_rows(rows)
    first = [row["id"] for row in draw(listed, "2026-W48", 4)]
    assert first == [row["id"] for row in draw(list(reversed(listed)), "2026-W48", 4)]
    assert first != [row["id"] for row in draw(listed, "2026-W49", 4)]
    assert len(set(first)) == 4


def test_weeks_are_those_of_iso() -> None:
    assert this_week(date(2026, 11, 23)) == "2026-W48"
    assert this_week(date(2027, 1, 1)) == "2026-W53"


def test_labels_are_kept_at_once_and_the_same_command_goes_on(rows: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.jsonl"
    words = ["label", str(rows), "-o", str(labels), "--sample", "3", "--rater", "ann", "--rotation", "w"]
    first = CliRunner().invoke(app, words, input="1\n2\n3\n4\n5\nq\n")
    assert first.exit_code == 0, first.output
    assert "score" not in first.output.replace("score of", "")
    (label,) = read_labels(labels)
    assert label.scores == {"faithfulness": 0.1, "coverage": 0.2, "conciseness": 0.3, "clarity": 0.4}
    assert CliRunner().invoke(app, words, input="9\n9\n9\n9\ns\n").exit_code == 0
    assert len(read_labels(labels)) == 2
    again = CliRunner().invoke(app, words, input="8\n8\n8\n8\n")
    assert "1 to go" in again.output
    assert "are labelled by ann" in CliRunner().invoke(app, words).output
    other = CliRunner().invoke(app, [*words[:-3], "bob", "--rotation", "w"], input="q\n")
    assert "3 to go" in other.output


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", DataEmpty),
        ("[1]", DataRecord),
        ("{", DataRecord),
        ('{"id": 1, "document": "d"}', DataRecord),
        ('{"id": 1, "document": 3, "completion": "c"}', DataRecord),
        ('{"id": 1, "document": "d", "completion": "c"}\n' * 2, DataRecord),
    ],
)
def test_files_that_can_not_be_labelled_are_refused(tmp_path: Path, text: str, error: type[Exception]) -> None:
    (tmp_path / "rows.jsonl").write_text(text)
    with pytest.raises(error):
        read_rows(tmp_path / "rows.jsonl")
    with pytest.raises(DataMissing):
        read_rows(tmp_path / "none.jsonl")
