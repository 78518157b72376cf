"""Training again from a run's own log: an asynchronous one, since nothing else could give its weights again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from tersely.errors import CheckpointInvalid, ConfigValue, ReplayDiffers, RunDirMissing
from tersely.trainer.history import fold
from tersely.trainer.replay import Progress, run_replay
from tersely.trainer.wal import WriteAheadLog, read_records
from tersely.v1 import log_pb2

TINY = Path(__file__).parents[2] / "recipes" / "tiny.toml"
STEPS = 8
SETS = (
    "run.max_staleness=2",
    f"run.steps={STEPS}",
    "run.checkpoint_every=3",
    "rollout.workers=2",
    "evaluation.prompts=0",
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def cli(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tersely.cli", *words]
    environ = {**os.environ, "http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environ)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with two workers and stale groups in its batches."""
    path = tmp_path_factory.mktemp("replay") / "run"
    done = cli("up", str(TINY), "--run-dir", str(path), "--plain", *(word for item in SETS for word in ("--set", item)))
    assert done.returncode == 0, done.stdout + done.stderr
    return path


@pytest.fixture
def copy(run_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run_dir, tmp_path / "copy"))


def final(run_dir: Path) -> str:
    weights: str = json.loads((run_dir / "report.json").read_text())["final_weights_sha256"]
    return weights


def rewrite(run_dir: Path, change: Callable[[log_pb2.LogRecord], bool]) -> None:
    """Writes the log again, up to the first record that `change` says no to."""
    path = run_dir / "log" / "run.wal"
    records = list(read_records(path))
    path.unlink()
    with WriteAheadLog(path) as wal:
        for record in records:
            if not change(record):
                break
            wal.append(record, sync=False)


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}


def test_the_log_of_an_asynchronous_run_gives_its_weights(run_dir: Path) -> None:
    lines = (run_dir / "events.jsonl").read_text().splitlines()
    trained = [event for event in map(json.loads, lines) if event["kind"] == "group_trained"]
    assert max(event["step"] - 1 - event["policy_version"] for event in trained) > 0, "nothing was sampled ahead"
    before = contents(run_dir)
    with FileLock(run_dir / ".trainer.lock"):
        done = cli("replay", str(run_dir), "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["final_weights_sha256"] == result["logged_weights_sha256"] == final(run_dir)
    assert (result["from_step"], result["to_step"], result["steps"]) == (0, STEPS, STEPS)
    assert (result["differing_step"], result["environment_differences"]) == (None, [])
    assert f"step {STEPS}/{STEPS}  same weights" in done.stderr
    assert contents(run_dir) == before


@pytest.mark.parametrize(("from_step", "begun_at"), [(2, 0), (5, 3), (7, 6), (STEPS, STEPS)])
def test_it_begins_at_the_newest_checkpoint_that_is_not_too_new(run_dir: Path, from_step: int, begun_at: int) -> None:
    kept = sorted(path.name for path in (run_dir / "checkpoints").iterdir())
    assert kept == ["step-000003", "step-000006", "step-000008"], "two, and where it ended"
    seen: list[Progress] = []
    result = run_replay(run_dir, from_step=from_step, on_progress=seen.append)
    assert result["final_weights_sha256"] == final(run_dir)
    assert (result["from_step"], result["steps"]) == (begun_at, STEPS - begun_at)
    assert [progress.step for progress in seen] == list(range(begun_at, STEPS + 1))
    assert all(progress.same for progress in seen)


def test_a_step_beyond_the_log_is_refused_and_one_before_all_checkpoints_said(run_dir: Path) -> None:
    with pytest.raises(ConfigValue, match=f"the log ends with step {STEPS}"):
        run_replay(run_dir, from_step=99)
    done = cli("replay", str(run_dir), "--from-step", "2")
    assert done.returncode == 0, done.stderr
    assert "no checkpoint at or before step 2 to begin with: beginning at 0" in done.stderr


def test_a_run_of_another_device_is_replayed_here(copy: Path) -> None:
    tree = json.loads((copy / "recipe.json").read_text())
    missing = "mps" if torch.cuda.is_available() else "cuda"
    tree["learner"]["device"] = missing
    (copy / "recipe.json").write_text(json.dumps(tree))
    with pytest.raises(ConfigValue, match=r"learner\.device"):
        run_replay(copy)
    assert run_replay(copy, device="cpu")["final_weights_sha256"] == final(copy)


def test_an_unfinished_run_is_replayed_to_the_end_of_its_log(copy: Path) -> None:
    logged = fold(read_records(copy / "log" / "run.wal"))
    # Version 5 is written beside the training thread: before or after the batch of step 6.
    rewrite(copy, lambda record: record.version_committed.step != 5 and record.batch_formed.step != 6)
    with (copy / "log" / "run.wal").open("ab") as file:
        file.write(b"\x07\0\0")  # a record that is just being written
    result = run_replay(copy)
    assert result["final_weights_sha256"] == logged.versions[5].weights_sha256
    assert (result["to_step"], result["logged_weights_sha256"]) == (5, None)


def test_the_first_version_that_differs_is_named_and_what_is_different_here(copy: Path) -> None:
    def change(record: log_pb2.LogRecord) -> bool:
        if record.HasField("trainer_started"):
            record.trainer_started.environment["torch"] = "1.0"
        if record.HasField("version_committed") and record.version_committed.step in (4, 6):
            record.version_committed.weights.weights_sha256 = "ab" * 32
        return True

    rewrite(copy, change)
    done = cli("replay", str(copy), "--json")
    assert done.returncode == ReplayDiffers.exit_code
    result: dict[str, Any] = json.loads(done.stdout)
    assert result["differing_step"] == 4
    assert result["final_weights_sha256"] == final(copy)
    assert "error[replay_differs]" in done.stderr
    assert "from step 4 on (torch: 1.0 in the log" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_roll_back_in_the_log_is_gone_through_again(copy: Path) -> None:
    """Steps 4 and 5 are left out of what follows: the log says so, and the learner comes to the same weights as one
    that never trained them."""
    versions = fold(read_records(copy / "log" / "run.wal")).versions

    rewrite(copy, lambda record: record.version_committed.step != 5 and record.batch_formed.step != 6)
    with WriteAheadLog(copy / "log" / "run.wal") as wal:
        rolled = log_pb2.RolledBack(step=5, to_step=3, weights=versions[3].to_proto(), reason="a test")
        rolled.weights.policy_version = 6
        wal.append(log_pb2.LogRecord(rolled_back=rolled), sync=True)
    shutil.rmtree(copy / "checkpoints")
    result = run_replay(copy)
    assert result["final_weights_sha256"] == versions[3].weights_sha256
    assert (result["rollbacks"], result["differing_step"]) == (1, None)


def test_a_folder_without_a_run_and_one_with_another_model_are_refused(copy: Path, tmp_path: Path) -> None:
    missing = cli("replay", str(tmp_path / "nothing"))
    assert missing.returncode == RunDirMissing.exit_code
    assert missing.stdout == ""

    def change(record: log_pb2.LogRecord) -> bool:
        if record.HasField("trainer_started"):
            record.trainer_started.initial_weights.weights_sha256 = "cd" * 32
        return True

    rewrite(copy, change)
    with pytest.raises(CheckpointInvalid, match="initial model"):
        run_replay(copy)
