"""The queue server of a running `tersely up` dies, comes back with its file cut or damaged, and loses everything."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tersely.queue import connect

TINY = Path(__file__).parents[2] / "recipes" / "tiny.toml"
STEPS = 60
SETS = (f"run.steps={STEPS}", "run.checkpoint_every=30", "rollout.engine=stub", "evaluation.prompts=0")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not os.environ.get("TERSELY_FAULTS"), reason="minutes long: make faults"),
]


def start(run_dir: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tersely.cli", "up", str(TINY), "--run-dir", str(run_dir), "--plain"]
    command += [word for item in SETS for word in ("--set", item)]
    with run_dir.with_suffix(".log").open("wb") as log:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def weights_of(run_dir: Path) -> str:
    return str(json.loads((run_dir / "report.json").read_text())["final_weights_sha256"])


class Disturbed:
    """A run, and what can be done to its queue server."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.up = start(run_dir)

    def step(self) -> int:
        path = self.run_dir / "status.json"
        return int(json.loads(path.read_text())["step"]) if path.exists() else 0

    def go_on(self, steps: int) -> None:
        """Waits for so many more steps."""
        reached, deadline = self.step(), time.monotonic() + 150
        while self.step() < reached + steps:
            assert self.up.poll() is None, self.run_dir.with_suffix(".log").read_text()
            assert time.monotonic() < deadline, f"no step after {reached}"
            time.sleep(0.02)

    def kill_server(self, then: Callable[[Path], None]) -> None:
        """SIGKILL; its file is spoiled before the supervisor can start it again."""
        pid = int((self.run_dir / "valkey" / "valkey.pid").read_text())
        os.kill(self.up.pid, signal.SIGSTOP)
        try:
            os.kill(pid, signal.SIGKILL)
            while psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.01)
            (path,) = (self.run_dir / "valkey" / "appendonlydir").glob("*.incr.aof")
            then(path)
        finally:
            os.kill(self.up.pid, signal.SIGCONT)

    def empty_server(self) -> None:
        url = json.loads((self.run_dir / "run.json").read_text())["redis_url"]
        with connect(url) as client:
            client.flushall()


@pytest.fixture
def disturbed(tmp_path: Path) -> Iterator[Disturbed]:
    run = Disturbed(tmp_path / "run")
    try:
        yield run
    finally:
        run.up.kill()
        run.up.wait()


def cut(path: Path) -> None:
    os.truncate(path, max(0, path.stat().st_size - 700))


def spoil(path: Path) -> None:
    """Damage that the server notices; bytes changed inside an entry it would not."""
    (manifest,) = path.parent.glob("*.manifest")
    manifest.write_bytes(os.urandom(64))


def test_killed_cut_damaged_and_emptied_and_the_weights_are_those_of_the_calm_run(
    disturbed: Disturbed, tmp_path: Path
) -> None:
    disturbed.go_on(2)
    disturbed.kill_server(then=lambda path: None)
    disturbed.go_on(3)
    disturbed.kill_server(then=cut)
    disturbed.go_on(3)
    disturbed.kill_server(then=spoil)
    disturbed.go_on(3)
    disturbed.empty_server()
    assert disturbed.up.wait(300) == 0, disturbed.run_dir.with_suffix(".log").read_text()

    groups = json.loads((disturbed.run_dir / "report.json").read_text())["groups"]
    assert groups["trained"] == STEPS * 4
    assert (groups["quarantined"], groups["in_flight"]) == (0, 0)
    events = [json.loads(line) for line in (disturbed.run_dir / "events.jsonl").read_text().splitlines()]
    kinds = [event["kind"] for event in events if event.get("name") == "valkey" or event["kind"].startswith("queue_")]
    assert kinds.count("service_died") == kinds.count("service_restarted") == 3
    assert kinds.count("queue_data_damaged") == 1
    calm = tmp_path / "calm"
    assert start(calm).wait(300) == 0
    assert weights_of(disturbed.run_dir) == weights_of(calm)
