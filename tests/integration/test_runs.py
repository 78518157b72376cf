"""Whole runs with real processes: embedded server, trainer, scorer, rollout workers, a random model and real text."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TINY = Path(__file__).parents[2] / "recipes" / "tiny.toml"
SEEDS = (0, 1, 2)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def up(run_dir: Path, *sets: str, recipe: Path = TINY) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tersely.cli", "up", str(recipe), "--run-dir", str(run_dir), "--plain"]
    for item in sets:
        command += ["--set", item]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def report_of(done: subprocess.CompletedProcess[str], run_dir: Path) -> dict[str, Any]:
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == f"report: {run_dir.resolve()}"
    report: dict[str, Any] = json.loads((run_dir / "report.json").read_text())
    return report


def events_of(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    lines = (run_dir / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["kind"] == kind]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[Path, dict[str, Any]]]:
    """One finished run with one worker for each seed."""
    found = {}
    for seed in SEEDS:
        run_dir = tmp_path_factory.mktemp("runs") / f"seed-{seed}"
        found[seed] = (run_dir, report_of(up(run_dir, f"run.seed={seed}"), run_dir))
    return found


@pytest.mark.parametrize("seed", SEEDS)
def test_the_mean_length_reward_improves(runs: dict[int, tuple[Path, dict[str, Any]]], seed: int) -> None:
    curve = [step["rewards"]["length"] for step in runs[seed][1]["curve"]]
    third = len(curve) // 3
    first, last = sum(curve[:third]) / third, sum(curve[-third:]) / third
    assert last > first + 0.1, curve


def test_the_report_holds_what_it_promises(runs: dict[int, tuple[Path, dict[str, Any]]]) -> None:
    run_dir, report = runs[0]
    assert (report["target_tokens"], report["max_completion_tokens"], report["steps"]) == (16, 48, 12)
    assert 0 < report["seconds_to_first_step"] < report["seconds"]
    for when in ("before", "after"):
        for mode in ("greedy", "sampled"):
            figures = report["held_out"][when][mode]
            assert figures["n"] == 6
            assert 0 <= figures["within_5"] <= figures["stopped"] <= 1
            assert 0 <= figures["mean_tokens"] <= 48
    assert report["initial_weights_sha256"] != report["final_weights_sha256"]
    groups = report["groups"]
    assert groups["issued"] == sum(value for key, value in groups.items() if key != "issued")
    assert groups["in_flight"] == 0
    assert (run_dir / "report.html").stat().st_size > 1000


def test_every_trained_group_is_in_the_event_log_once_with_its_samples(
    runs: dict[int, tuple[Path, dict[str, Any]]],
) -> None:
    run_dir, report = runs[0]
    trained = events_of(run_dir, "group_trained")
    ids = [event["group_id"] for event in trained]
    assert len(ids) == len(set(ids)) == report["groups"]["trained"] == 48
    assert all(event["policy_version"] == event["step"] - 1 for event in trained)
    samples = [json.loads(line) for line in (run_dir / "samples.jsonl").read_text().splitlines()]
    assert len([row for row in samples if row["outcome"] == "trained"]) == 48 * 8
    assert all(0 <= row["tokens"] <= 48 and isinstance(row["text"], str) for row in samples)


def test_one_seed_gives_byte_identical_weights_with_two_workers_in_another_directory(
    runs: dict[int, tuple[Path, dict[str, Any]]], tmp_path: Path
) -> None:
    run_dir = tmp_path / "elsewhere" / "two-workers"
    report = report_of(up(run_dir, "rollout.workers=2"), run_dir)
    workers = {json.loads(line)["rollout_node_id"] for line in (run_dir / "samples.jsonl").read_text().splitlines()}
    assert len(workers) == 2, "both workers must have had a share"
    assert report["final_weights_sha256"] == runs[0][1]["final_weights_sha256"]
    ours, theirs = (folder / "policy" / "model.safetensors" for folder in (run_dir, runs[0][0]))
    assert ours.read_bytes() == theirs.read_bytes()


def test_one_seed_gives_byte_identical_weights_again_in_another_directory(
    runs: dict[int, tuple[Path, dict[str, Any]]], tmp_path: Path
) -> None:
    run_dir = tmp_path / "again"
    report = report_of(up(run_dir), run_dir)
    assert report["final_weights_sha256"] == runs[0][1]["final_weights_sha256"]


def test_another_seed_ends_in_other_weights(runs: dict[int, tuple[Path, dict[str, Any]]]) -> None:
    finals = {report["final_weights_sha256"] for _, report in runs.values()}
    initials = {report["initial_weights_sha256"] for _, report in runs.values()}
    assert len(finals) == len(SEEDS)
    assert len(initials) == 1


def test_an_asynchronous_run_ends_with_its_books_closed(tmp_path: Path) -> None:
    run_dir = tmp_path / "async"
    report = report_of(up(run_dir, "run.max_staleness=2", "run.steps=8", "evaluation.prompts=2"), run_dir)
    groups = report["groups"]
    assert groups["trained"] == 32
    assert groups["in_flight"] == 0
    assert groups["issued"] == groups["trained"] + groups["stale"] + groups["no_signal"] + groups["quarantined"]
    lags = {event["step"] - 1 - event["policy_version"] for event in events_of(run_dir, "group_trained")}
    assert max(lags) <= 2
    assert max(lags) > 0, "nothing was sampled ahead: this was not asynchronous"
