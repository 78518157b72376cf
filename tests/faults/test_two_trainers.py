"""Two trainers on one run: the second is refused; one that slept while another took over stops itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tersely.errors import RunDirBusy, TrainerSuperseded
from tersely.testing.services import Services
from tersely.trainer.history import fold
from tersely.trainer.wal import read_records

TINY = Path(__file__).parents[2] / "recipes" / "tiny.toml"
STEPS = 200
SETS = (
    "run.groups_per_step=2",
    "run.group_size=4",
    "run.checkpoint_every=5",
    "rollout.engine=stub",
    "evaluation.prompts=0",
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def wait_for(what: str, check: Callable[[], Any], seconds: float = 200) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = check()
        if found:
            return found
        time.sleep(0.05)
    pytest.fail(f"waited {seconds} s for {what}")


def step(run_dir: Path) -> int:
    log = run_dir / "log" / "run.wal"
    return fold(read_records(log)).last_step if log.exists() else 0


def test_a_second_trainer_on_the_same_run_is_refused(tmp_path: Path) -> None:
    with Services(tmp_path, TINY, (*SETS, f"run.steps={STEPS}")) as services:
        first = services.start_trainer(resume=False)
        wait_for("step 1", lambda: step(services.run_dir) >= 1)
        second = services.start_trainer(resume=True, sets=("rpc.port=0",))
        assert second.wait(timeout=120) == RunDirBusy.exit_code
        assert "error[run_dir_busy]" in services.output(second)
        assert "Traceback" not in services.output(second)
        before = step(services.run_dir)
        wait_for("another step of the first", lambda: step(services.run_dir) > before)
        assert first.poll() is None


def test_a_trainer_that_wakes_up_after_its_replacement_stops_itself_and_changes_nothing(tmp_path: Path) -> None:
    # A laptop that sleeps keeps its process, but a server that takes its lock for dead lets it go: as if the lock file
    # had been removed. Its port is on another machine then, so the replacement listens elsewhere, with other workers.
    with Services(tmp_path, TINY, (*SETS, f"run.steps={STEPS}")) as services:
        sleeper = services.start_trainer(resume=False)
        wait_for("step 3", lambda: step(services.run_dir) >= 3)
        os.kill(sleeper.pid, signal.SIGSTOP)
        services.kill_workers()
        (services.run_dir / ".trainer.lock").unlink()
        ours = ("rpc.port=0", "run.steps=12")
        replacement = services.start_trainer(resume=True, sets=ours)
        address = wait_for("the replacement to listen", lambda: _address(services.run_dir, replacement))
        worker = services.start("rollout", "--trainer", address, "--log-json")
        services.start("scorer", "--trainer", address)
        joined = step(services.run_dir)
        wait_for("a step of the replacement", lambda: step(services.run_dir) > joined)

        os.kill(sleeper.pid, signal.SIGCONT)
        assert sleeper.wait(timeout=120) == TrainerSuperseded.exit_code, services.output(sleeper)
        assert "error[trainer_superseded]" in services.output(sleeper)
        assert "Traceback" not in services.output(sleeper)
        # The lock is the replacement's still: nobody else may come in.
        if replacement.poll() is None:
            third = services.start_trainer(resume=True, sets=ours)
            assert third.wait(timeout=120) in (RunDirBusy.exit_code, 0)
        assert replacement.wait(timeout=240) == 0, services.output(replacement)
        assert worker.poll() is None

        written_by = [
            record.trainer_started.incarnation
            for record in read_records(services.run_dir / "log" / "run.wal")
            if record.HasField("trainer_started")
        ]
        assert written_by[:2] == [1, 2]
        report = services.report()
        assert report["groups"]["trained"] == 24
        history = fold(read_records(services.run_dir / "log" / "run.wal"))
        versions = [history.versions[number].policy_version for number in range(1, 13)]
        assert versions == sorted(set(versions))
        assert history.versions[12].weights_sha256 == report["final_weights_sha256"]


def _address(run_dir: Path, trainer: subprocess.Popen[bytes]) -> str:
    assert trainer.poll() is None
    facts = json.loads((run_dir / "run.json").read_text())
    return str(facts["trainer_address"]) if facts["pid"] == trainer.pid else ""
