"""Merging what trainer, supervisor and operating system say."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tersely.errors import RunDirMissing
from tersely.supervise.run_dir import RunDir
from tersely.view.status import read_status

HERE = socket.gethostname()


def dead_pid() -> int:
    with subprocess.Popen([sys.executable, "-I", "-S", "-c", "pass"]) as process:
        process.wait()
        return process.pid


def write(folder: Path, name: str, value: object) -> None:
    (folder / name).write_text(json.dumps(value))


def test_no_run_is_an_error_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(RunDirMissing):
        read_status(RunDir(tmp_path))
    with pytest.raises(RunDirMissing):
        read_status(RunDir(tmp_path / "absent"))


def test_dead_local_nodes_are_left_out_and_remote_ones_kept(tmp_path: Path) -> None:
    nodes = [
        {"node_id": "a", "role": "rollout", "pid": dead_pid(), "host": HERE, "state": "generating"},
        {"node_id": "b", "role": "rollout", "pid": os.getpid(), "host": HERE, "state": "generating"},
        {"node_id": "c", "role": "rollout", "pid": dead_pid(), "host": "mini2", "state": "generating"},
    ]
    write(tmp_path, "status.json", {"state": "training", "time": time.time(), "nodes": nodes})
    write(tmp_path, "run.json", {"pid": os.getpid(), "host": HERE})
    status = read_status(RunDir(tmp_path))
    assert [node["node_id"] for node in status["nodes"] if node["role"] == "rollout"] == ["b", "c"]
    assert status["state"] == "training"


def test_a_child_without_a_heartbeat_is_starting(tmp_path: Path) -> None:
    write(tmp_path, "processes.json", [{"name": "scorer-0", "role": "scorer", "pid": os.getpid(), "state": "running"}])
    (node,) = read_status(RunDir(tmp_path))["nodes"]
    assert (node["role"], node["pid"], node["host"], node["state"]) == ("scorer", os.getpid(), HERE, "starting")


def test_a_run_whose_trainer_vanished_is_dead(tmp_path: Path) -> None:
    write(tmp_path, "status.json", {"state": "training", "time": time.time()})
    write(tmp_path, "run.json", {"pid": dead_pid(), "host": HERE})
    assert read_status(RunDir(tmp_path))["state"] == "dead"


def test_a_finished_run_stays_finished(tmp_path: Path) -> None:
    write(tmp_path, "status.json", {"state": "finished", "time": time.time() - 1e6, "step": 3})
    write(tmp_path, "run.json", {"pid": dead_pid(), "host": HERE})
    status = read_status(RunDir(tmp_path))
    assert (status["state"], status["stale"], status["step"]) == ("finished", False, 3)


def test_a_silent_trainer_that_lives_is_stale_and_not_dead(tmp_path: Path) -> None:
    write(tmp_path, "status.json", {"state": "training", "time": time.time() - 60})
    write(tmp_path, "run.json", {"pid": os.getpid(), "host": HERE})
    status = read_status(RunDir(tmp_path))
    assert (status["state"], status["stale"]) == ("training", True)


def test_a_trainer_that_is_being_restarted_is_starting(tmp_path: Path) -> None:
    write(tmp_path, "status.json", {"state": "training", "time": time.time()})
    write(tmp_path, "run.json", {"pid": dead_pid(), "host": HERE})
    rows = [
        {"name": "trainer", "role": "trainer", "pid": None, "state": "backoff"},
        {"name": "scorer-0", "role": "scorer", "pid": os.getpid(), "state": "running"},
    ]
    write(tmp_path, "processes.json", rows)
    assert read_status(RunDir(tmp_path))["state"] == "starting"
