"""A run that outlives every certificate in it: on the machine of the authority, and on one that joined."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tersely.identity.folder import FOLDER_ENV

TINY = Path(__file__).parents[2] / "recipes" / "tiny.toml"
DAYS = 40 / 86_400  # certificates live for 40 s and are renewed at 27 s
SETS = (
    "rpc.host=0.0.0.0",
    "rpc.join_port=0",
    "rollout.workers=0",
    "run.steps=10000",
    "evaluation.prompts=0",
    # So little that the policy goes on giving groups a signal for as long as the certificates take.
    "learner.learning_rate=1e-6",
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.skipif("TERSELY_FAULTS" not in os.environ, reason="takes two minutes: make faults"),
]


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[bytes]]]:
    found: list[subprocess.Popen[bytes]] = []
    yield found
    for process in found:
        process.kill()
        process.wait()


def environ(folder: Path) -> dict[str, str]:
    return {**os.environ, FOLDER_ENV: str(folder), "OMP_NUM_THREADS": "1"}


def run(folder: Path, *words: str, told: str = "") -> str:
    command = [sys.executable, "-m", "tersely.cli", *words]
    return subprocess.run(
        command, env=environ(folder), input=told, capture_output=True, text=True, timeout=60, check=True
    ).stdout


def start(folder: Path, log: Path, *words: str) -> subprocess.Popen[bytes]:
    with log.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "tersely.cli", *words],
            env=environ(folder),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
        )


def wait(what: str, check: Callable[[], Any], seconds: float = 200) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = check()
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError(f"{what} did not come")


def test_certificates_that_expire_in_mid_run_are_renewed_and_nobody_falls_out(
    tmp_path: Path, processes: list[subprocess.Popen[bytes]]
) -> None:
    home, away, run_dir = tmp_path / "home", tmp_path / "away", tmp_path / "run"
    run(home, "ca", "init", "--days", str(DAYS))
    sets = [word for item in SETS for word in ("--set", item)]
    up = start(home, tmp_path / "up.log", "up", str(TINY), "--run-dir", str(run_dir), "--plain", *sets)
    processes.append(up)
    wait("the trainer", (run_dir / "run.json").exists)
    facts = json.loads((run_dir / "run.json").read_text())
    token = run(home, "token", "create").splitlines()[0]
    run(away, "join", facts["join_address"].removeprefix("tls://"), "--token", "-", told=token)
    first = serial(away)
    worker = start(away, tmp_path / "worker.log", "rollout", "--trainer", facts["trainer_address"])
    processes.append(worker)

    def renewals() -> int:
        return (tmp_path / "worker.log").read_text(errors="replace").count("certificate_renewed")

    wait("two renewals", lambda: renewals() >= 2 or worker.poll() is not None or up.poll() is not None)
    assert (worker.poll(), up.poll()) == (None, None), (tmp_path / "worker.log").read_text()
    reached = step(run_dir)
    wait("steps with certificates that were not there at the start", lambda: step(run_dir) >= reached + 3)
    assert serial(away) != first
    said = (tmp_path / "worker.log").read_text() + (run_dir / "logs" / "trainer.log").read_text()
    assert "certificate_refused" not in said
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(60) == 0
    up.send_signal(signal.SIGTERM)
    up.wait(60)


def step(run_dir: Path) -> int:
    return int(json.loads((run_dir / "status.json").read_text())["step"])


def serial(folder: Path) -> str:
    """When the machine's certificate ends, which changes with each renewal."""
    return str(json.loads(run(folder, "ca", "show", "--json"))["identities"][0]["valid_until"])
