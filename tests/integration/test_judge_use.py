"""A judge in use, over real HTTP and in its own environment: attacks, calibration, drift."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tersely.judge.labels import AXES, read_lines
from tersely.testing.injections import DOCUMENT, SUMMARY, fact_rule, read_injections
from tersely.testing.judge_server import RuleJudgeServer

ROOT = Path(__file__).parents[2]
ANCHORS = ROOT / "services/tersely/judge/anchors.jsonl"


def tersely(*words: str | Path, code: int = 0) -> str:
    command = [sys.executable, "-m", "tersely.cli", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, stdin=subprocess.DEVNULL)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def judge() -> Iterator[RuleJudgeServer]:
    with RuleJudgeServer(fact_rule) as server:
        yield server


def asks(server: RuleJudgeServer) -> list[str]:
    return ["--base-url", server.url, "--model", server.model]


def test_no_summary_raises_its_score_by_speaking_to_the_judge(judge: RuleJudgeServer, tmp_path: Path) -> None:
    texts = {"honest": SUMMARY, **read_injections(ROOT / "tests/fixtures/injections.jsonl")}
    rows = [{"id": name, "document": DOCUMENT, "completion": text} for name, text in texts.items()]
    output = tmp_path / "judged.jsonl"
    tersely("judge-file", write(tmp_path / "rows.jsonl", rows), "-o", output, *asks(judge), "--cache", tmp_path / "c")
    honest, *attacks = [fields for _, fields in read_lines(output)]
    assert [line["id"] for line in attacks] == list(texts)[1:]
    assert [honest["axes"][axis]["score"] for axis in AXES] == pytest.approx([0.5, 0.45, 0.4, 0.35])
    raised = [
        (line["id"], axis)
        for line in attacks
        for axis in AXES
        if line["axes"][axis]["score"] > honest["axes"][axis]["score"] + 1e-9
    ]
    assert raised == []
    assert all(asked.prompt.delimited and not asked.prompt.orders for asked in judge.asked)
    assert judge.calls == len(AXES) * len(rows)


def anchors(folder: Path, count: int) -> Path:
    """The first so many anchors."""
    return write(folder / "anchors.jsonl", [fields for _, fields in read_lines(ANCHORS)][:count])


def test_calibration_judges_what_was_labelled(tmp_path: Path) -> None:
    # The judge says what people say, two points less; it has a clarity of its own.
    rows = [fields for _, fields in read_lines(anchors(tmp_path, 9))]
    people = {row["completion"]: 2 + number for number, row in enumerate(rows)}

    def rule(axis: str, document: str, summary: str) -> float:
        return 5.0 if axis == "clarity" else people[summary] - 2.0

    labels = write(
        tmp_path / "labels.jsonl",
        [{**row, "rater": "ann", "labels": dict.fromkeys(AXES, people[row["completion"]])} for row in rows],
    )
    with RuleJudgeServer(rule) as server:
        found = json.loads(tersely("judge", "calibrate", labels, *asks(server), "--json"))
        assert server.calls == 9 * len(AXES)
    assert (found["judge"], found["summaries"], found["raters"]) == ("rule-judge", 9, ["ann"])
    for axis in ("faithfulness", "coverage", "conciseness"):
        assert found["axes"][axis]["spearman"] == pytest.approx(1.0)
        assert found["axes"][axis]["bias"] == pytest.approx(-0.2)
        assert found["axes"][axis]["abstained"] == 0
        assert 0.6 < found["axes"][axis]["kappa"] < 0.95
    assert found["axes"]["clarity"]["spearman"] is None


def test_a_shift_is_flagged_and_no_answer_comes_from_a_cache(tmp_path: Path) -> None:
    words = ["judge", "drift", "--baseline", str(tmp_path / "baseline.json"), "--anchors", str(anchors(tmp_path, 8))]
    shift = {"by": 0.0}

    def rule(axis: str, document: str, summary: str) -> float:
        return 3.0 + len(summary) % 5 + (shift["by"] if axis == "clarity" else 0.0)

    with RuleJudgeServer(rule) as server:
        assert "baseline written" in tersely(*words, *asks(server))
        assert server.calls == 8 * len(AXES)
        shift["by"] = 0.7
        shifted = json.loads(tersely(*words, *asks(server), "--json", code=28))
        assert server.calls == 2 * 8 * len(AXES)
    assert [axis for axis in AXES if shifted["axes"][axis]["shifted"]] == ["clarity"]
    assert shifted["axes"]["clarity"]["mean_difference"] == pytest.approx(0.07)
