"""Training with a judge among the rewards whose endpoint fails for a third of the summaries."""

from __future__ import annotations

import json
import string
import subprocess
import sys
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from tersely.grpo.group_advantages import batch_advantages
from tersely.testing.judge_server import RuleJudgeServer

TINY = Path(__file__).parents[2] / "recipes" / "tiny.toml"
AXES = 4

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def letters_rule(axis: str, document: str, summary: str) -> float:
    """2 to 8 by the number of letters: never 0, and the same whatever else a text is cleaned of."""
    return 2.0 + sum(character in string.ascii_letters for character in summary) % 7


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[dict[str, Any]], RuleJudgeServer]:
    """Report, samples and judge of a finished run."""
    folder = tmp_path_factory.mktemp("judged")
    with RuleJudgeServer(letters_rule, fail_share=0.3, fail_by="summary", hang_seconds=60, seed=1) as server:
        sets = {
            "run.steps": 2,
            "evaluation.prompts": 0,
            "rewards.judge.weight": 0.5,
            "judge.endpoint": server.url,
            "judge.cache": folder / "cache",
            "judge.attempts": 2,
            "judge.backoff_seconds": 0.01,
            "judge.timeout_seconds": 1.0,
            "judge.circuit_failures": 10_000,
            "judge.concurrency": 16,
        }
        words = [word for key, value in sets.items() for word in ("--set", f"{key}={value}")]
        command = [sys.executable, "-m", "tersely.cli", "up", str(TINY), "--run-dir", str(folder / "run"), "--plain"]
        done = subprocess.run([*command, *words], capture_output=True, text=True, timeout=380, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in (folder / "run/samples.jsonl").read_text().splitlines()]
    return json.loads((folder / "run/report.json").read_text()), rows, server


def test_the_run_goes_on_and_every_kind_of_failure_was_met(
    run: tuple[dict[str, Any], list[dict[str, Any]], RuleJudgeServer],
) -> None:
    report, rows, server = run
    assert report["steps"] == 2
    abstained = sum(row["rewards"]["judge"] is None for row in rows)
    assert 0 < abstained < len(rows) / 2
    assert sum(server.failed.values()) >= abstained * AXES
    assert len(server.failed) >= 3


def test_no_failure_became_a_score_and_no_score_is_wrong(
    run: tuple[dict[str, Any], list[dict[str, Any]], RuleJudgeServer],
) -> None:
    for row in run[1]:
        value = row["rewards"]["judge"]
        if value is None:
            assert row["absent_reasons"]["judge"].startswith("the judge abstained (faithfulness: judge_")
        else:
            assert value == pytest.approx(AXES * letters_rule("", "", row["text"]) / 10)


def test_failed_samples_leave_the_statistics_as_if_they_had_not_been_drawn(
    run: tuple[dict[str, Any], list[dict[str, Any]], RuleJudgeServer],
) -> None:
    report, rows, _ = run
    trained = sorted((row for row in rows if row["outcome"] == "trained"), key=lambda row: row["step"])
    compared = 0
    for step, of_step in groupby(trained, key=lambda row: row["step"]):
        groups: dict[str, list[dict[str, Any]]] = {}
        for row in of_step:
            groups.setdefault(row["group_id"], []).append(row)
        scored = [[row for row in group if row["rewards"]["judge"] is not None] for group in groups.values()]
        columns = [{name: [row["rewards"][name] for row in group] for name in ("length", "judge")} for group in scored]
        for group, expected in zip(scored, batch_advantages(columns, {"length": 1.0, "judge": 0.5}), strict=True):
            assert [row["advantage"] for row in group] == pytest.approx(expected, abs=1e-9)
            compared += len(group)
        judged = [row["rewards"]["judge"] for group in scored for row in group]
        assert report["curve"][step - 1]["rewards"]["judge"] == pytest.approx(fmean(judged))
    assert compared > 0
    assert all(row["advantage"] is None for row in rows if row["rewards"]["judge"] is None)
