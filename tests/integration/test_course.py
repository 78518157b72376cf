"""Runs that change on the way: stages, targets per prompt, evaluations between steps, alarms that act."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tersely.telemetry.jsonl import read_json_lines

TINY = Path(__file__).parents[2] / "recipes" / "tiny.toml"
STAGES = """
[[stages]]
name = "length"
steps = 6
[stages.rewards.length]

[[stages]]
name = "both"
steps = 6
[stages.rewards.length]
weight = 1.0
final_weight = 0.5
[stages.rewards.rouge_l]
weight = 0.5
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def cli(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tersely.cli", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def up(recipe: Path, run_dir: Path, *more: str, sets: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    words = [word for item in sets for word in ("--set", item)]
    return cli("up", str(recipe), "--run-dir", str(run_dir), "--plain", *more, *words)


def lines(path: Path) -> list[dict[str, Any]]:
    return list(read_json_lines(path))


def events(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in lines(run_dir / "events.jsonl") if event["kind"] == kind]


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("staged")
    recipe, run_dir = folder / "staged.toml", folder / "run"
    text = TINY.read_text().replace("./data/tiny", str(TINY.parent / "data" / "tiny"))
    recipe.write_text(text + STAGES)
    sets = (
        "length.target_range=[8, 24]",
        "evaluation.every=4",
        "evaluation.best_by=sampled.mean_abs_length_error",
        "run.keep_checkpoints=1",
    )
    done = up(recipe, run_dir, sets=sets)
    assert done.returncode == 0, done.stdout + done.stderr
    return run_dir


def test_each_step_is_trained_by_the_weights_of_its_stage(staged: Path) -> None:
    weights = [(event["stage"], event["reward_weights"]) for event in events(staged, "step_finished")]
    assert weights[5] == ("length", {"length": 1.0, "rouge_l": 0.0})
    assert weights[6] == ("both", {"length": 1.0, "rouge_l": 0.5})
    assert weights[11] == ("both", {"length": 0.5, "rouge_l": 0.5})
    assert [event["step"] for event in events(staged, "stage_began")] == [1, 7]
    report = json.loads((staged / "report.json").read_text())
    assert [(stage["name"], stage["last_step"]) for stage in report["stages"]] == [("length", 6), ("both", 12)]


def test_groups_ask_for_lengths_of_the_whole_range_and_are_scored_against_their_own(staged: Path) -> None:
    rows = lines(staged / "samples.jsonl")
    targets = {(row["outcome"], row["group_id"]): row["target_tokens"] for row in rows}
    drawn = Counter(target for (outcome, _), target in targets.items() if outcome == "trained")
    assert len(drawn) > 8
    assert set(drawn) <= set(range(8, 25))
    for row in rows:
        expected = -abs(row["tokens"] - row["target_tokens"]) / row["target_tokens"]
        assert row["rewards"]["length"] == pytest.approx(expected, abs=1e-6)
    held_out = {row["prompt_id"]: row["target_tokens"] for row in rows if row["outcome"] == "evaluation"}
    assert len(set(held_out.values())) > 1
    for name in ("before", "step-000004", "after"):
        evaluation = json.loads((staged / f"evaluation-{name}.json").read_text())
        assert {row["prompt_id"]: row["target_tokens"] for row in evaluation["rows"]} == held_out, "fixed for the run"
        errors = [abs(row["tokens"] - row["target_tokens"]) for row in evaluation["rows"] if row["mode"] == "sampled"]
        assert evaluation["sampled"]["mean_abs_length_error"] == pytest.approx(sum(errors) / len(errors))


def test_evaluations_between_steps_name_the_best_checkpoint_and_it_is_kept(staged: Path) -> None:
    finished = events(staged, "evaluation_finished")
    assert [event["name"] for event in finished] == ["before", "step-000004", "step-000008", "after"]
    assert [event["policy_version"] for event in finished] == [0, 4, 8, 12]
    best = json.loads((staged / "best.json").read_text())
    by_step = {event["step"]: event["sampled"]["mean_abs_length_error"] for event in finished[1:]}
    assert (best["value"], best["step"]) == min((error, step) for step, error in by_step.items())
    kept = {path.name for path in (staged / "checkpoints").iterdir()}
    assert kept == {"step-000012", Path(best["checkpoint"]).name}
    report = json.loads((staged / "report.json").read_text())
    assert report["best"] == best
    assert [one["step"] for one in report["held_out"]["during"]] == [4, 8]
    evaluations = Counter(
        row["evaluation"] for row in lines(staged / "samples.jsonl") if row["outcome"] == "evaluation"
    )
    assert set(evaluations.values()) == {12}


def test_alarms_roll_the_run_back_then_stop_it_and_a_resume_and_a_replay_agree_on_the_rest(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    sets = (
        "run.steps=8",
        "run.checkpoint_every=1",
        "run.keep_checkpoints=8",
        "evaluation.prompts=0",
        "alarms.window_steps=2",
        "alarms.entropy_floor=100",
    )
    done = up(TINY, run_dir, sets=(*sets, "alarms.action=roll_back"))
    assert done.returncode != 0
    assert "entropy_collapse at step 5" in done.stderr, done.stderr
    assert "go on with: tersely up" in done.stderr
    rolled = events(run_dir, "rolled_back")
    assert [(event["step"], event["to_step"], event["policy_version"]) for event in rolled] == [
        (2, 1, 3),
        (3, 1, 5),
        (4, 1, 7),
    ]
    hashes = {event["weights_sha256"] for event in rolled}
    assert hashes == {event["weights_sha256"] for event in events(run_dir, "version_published") if event["step"] == 1}
    assert json.loads((run_dir / "status.json").read_text())["state"] == "drained"

    done = up(TINY, run_dir, "--resume", sets=(*sets, "alarms.action=warn"))
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((run_dir / "report.json").read_text())
    assert (report["steps"], report["groups"]["trained"], len(report["roll_backs"])) == (8, 32, 3)
    versions = [event["policy_version"] for event in events(run_dir, "step_finished")]
    assert versions == [1, 2, 4, 6, 8, 9, 10, 11]
    replayed = cli("replay", str(run_dir), "--json")
    assert replayed.returncode == 0, replayed.stderr
    assert json.loads(replayed.stdout)["final_weights_sha256"] == report["final_weights_sha256"]


def test_an_evaluation_that_a_kill_interrupts_is_done_again_and_a_finished_one_is_not(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    log, file = run_dir / "events.jsonl", run_dir / "evaluation-step-000004.json"
    command = [sys.executable, "-m", "tersely.cli", "up", str(TINY), "--run-dir", str(run_dir), "--plain"]
    for item in ("run.steps=5", "evaluation.every=2", "evaluation.samples=16", "queue.lease_seconds=3"):
        command += ["--set", item]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        deadline, began = time.monotonic() + 200, False
        while not began and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.02)  # status.json is only written once a second
            began = log.exists() and any(event["step"] == 4 for event in events(run_dir, "checkpoint_written"))
        os.kill(json.loads((run_dir / "run.json").read_text())["pid"], signal.SIGKILL)
        interrupted = not file.exists()
        output, _ = process.communicate(timeout=200)
    assert interrupted, output
    assert process.returncode == 0, output
    assert events(run_dir, "run_resumed")
    names = [event["name"] for event in events(run_dir, "evaluation_finished")]
    assert sorted(names) == ["after", "before", "step-000002", "step-000004"]
    rows = Counter(row["evaluation"] for row in lines(run_dir / "samples.jsonl") if row["outcome"] == "evaluation")
    assert len(set(rows.values())) == 1, rows
