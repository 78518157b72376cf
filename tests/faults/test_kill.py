"""kill -9 at the worst time: the run goes on, ends with the same number of trained groups, and trains none twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tersely.invariants import check_run

TINY = Path(__file__).parents[2] / "recipes" / "tiny.toml"
STEPS, GROUPS = 20, 80

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def cli(*words: str) -> list[str]:
    return [sys.executable, "-m", "tersely.cli", *words]


@contextmanager
def running_up(run_dir: Path, *more: str) -> Iterator[subprocess.Popen[str]]:
    sets = (f"run.steps={STEPS}", "queue.lease_seconds=3", "evaluation.prompts=2")
    command = cli("up", str(TINY), "--run-dir", str(run_dir), "--plain", *more)
    command += [word for item in sets for word in ("--set", item)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def status(run_dir: Path) -> dict[str, Any]:
    done = subprocess.run(
        cli("status", "--run-dir", str(run_dir), "--json"), capture_output=True, text=True, check=False
    )
    return json.loads(done.stdout) if done.returncode == 0 else {"nodes": [], "step": 0}


def step(run_dir: Path) -> int:
    """The step so far, from the file itself: runs of the tiny model outpace the command line."""
    path = run_dir / "status.json"
    return int(json.loads(path.read_text())["step"]) if path.exists() else 0


def wait_for(what: str, check: Callable[[], Any], seconds: float = 120) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = check()
        if found:
            return found
        time.sleep(0.3)
    pytest.fail(f"waited {seconds} s for {what}")


def pid_of(run_dir: Path, role: str, *, unlike: int = 0) -> int:
    def look() -> int:
        pids = [node["pid"] for node in status(run_dir)["nodes"] if node["role"] == role and node["pid"] != unlike]
        return pids[0] if pids else 0

    pid: int = wait_for(f"a {role} in status --json", look)
    return pid


def events(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    path = run_dir / "events.jsonl"
    if not path.exists():
        return []
    return [event for event in map(json.loads, path.read_text().splitlines()) if event["kind"] == kind]


def check_books(run_dir: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((run_dir / "report.json").read_text())
    trained = [event["group_id"] for event in events(run_dir, "group_trained")]
    assert len(trained) == len(set(trained)) == GROUPS
    groups = report["groups"]
    assert groups["trained"] == GROUPS
    assert groups["in_flight"] == 0
    assert groups["issued"] == groups["trained"] + groups["stale"] + groups["no_signal"] + groups["quarantined"]
    # How soon a lease is taken over is a matter of the machine's load; the others are not.
    assert set(check_run(run_dir).broken) <= {"leases"}
    return report


def test_a_killed_rollout_worker_and_a_killed_scorer_cost_no_group(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    with running_up(run_dir) as process:
        wait_for("the second step", lambda: step(run_dir) >= 2)
        for role in ("rollout", "scorer"):
            victim = pid_of(run_dir, role)
            os.kill(victim, signal.SIGKILL)
            assert pid_of(run_dir, role, unlike=victim) != victim
        output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    report = check_books(run_dir)
    assert report["steps"] == STEPS
    assert {event["role"] for event in events(run_dir, "service_died")} == {"rollout", "scorer"}


@pytest.fixture(scope="module")
def calm_weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Hash of the final weights of the same run with nobody disturbing it."""
    run_dir = tmp_path_factory.mktemp("calm") / "run"
    with running_up(run_dir) as process:
        output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    weights: str = check_books(run_dir)["final_weights_sha256"]
    return weights


def test_a_killed_trainer_resumes_and_ends_in_the_weights_of_the_calm_run(tmp_path: Path, calm_weights: str) -> None:
    rough = tmp_path / "rough"
    with running_up(rough) as process:
        # Step 7 lies beyond the checkpoint at step 5, so that the log has to be replayed.
        wait_for("step 7", lambda: step(rough) >= 7)
        os.kill(pid_of(rough, "trainer"), signal.SIGKILL)
        output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert events(rough, "run_resumed")
    assert check_books(rough)["final_weights_sha256"] == calm_weights


def test_ctrl_c_drains_and_resume_goes_on_to_the_same_weights(tmp_path: Path, calm_weights: str) -> None:
    run_dir = tmp_path / "run"
    with running_up(run_dir) as process:
        wait_for("the third step", lambda: step(run_dir) >= 3)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "--resume" in output
    assert not any(event["kind"] == "service_died" for event in events(run_dir, "service_died"))
    with running_up(run_dir, "--resume") as process:
        output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert check_books(run_dir)["final_weights_sha256"] == calm_weights
