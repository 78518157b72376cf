"""A stall is seen in every view, and that of a trainer which can't tell of it, too."""

from __future__ import annotations

import io
import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tersely.cli.status import lines
from tersely.config import Recipe
from tersely.supervise.run_dir import RunDir
from tersely.view.live import picture
from tersely.view.plain import line_for
from tersely.view.status import read_status

STALL = {
    "name": "worker_stuck",
    "part": "rollout rollout-1 on mac",
    "node_id": "rollout-1",
    "step": 4,
    "phase": "collect",
    "message": "It lives and finishes nothing.\x1b[2J",
    "cause": "Its engine hangs.",
    "change": "End it.",
    "late_seconds": 14.0,
    "limit_seconds": 12.0,
    "stalled_seconds": 65.0,
}


def run_dir(folder: Path, state: str = "training", age_seconds: float = 0.0, stall: Any = None) -> RunDir:
    run = {"run_id": "r-1", "pid": os.getpid(), "host": socket.gethostname()}
    (folder / "run.json").write_text(json.dumps(run))
    status = {"state": state, "step": 3, "time": time.time() - age_seconds, "stall": stall}
    (folder / "status.json").write_text(json.dumps(status))
    return RunDir(folder)


def test_status_names_the_part_the_cause_and_what_to_do(tmp_path: Path) -> None:
    found = read_status(run_dir(tmp_path, stall=STALL))
    assert found["stall"] == STALL
    (line,) = [line for line in lines(found) if line.startswith("stall")]
    assert line == (
        "stall worker_stuck at step 4, for 1 min 05 s: rollout rollout-1 on mac. It lives and finishes nothing. [2J"
        " Why: Its engine hangs. To do: End it."
    )


def test_the_picture_shows_it(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=200)
    console.print(picture(read_status(run_dir(tmp_path, stall=STALL)), Recipe()))
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert "stall worker_stuck at step 4" in shown
    assert "To do: End it." in shown
    assert "\x1b[2J" not in shown


@pytest.mark.parametrize(
    ("kind", "fields", "expected"),
    [
        ("stall", STALL, "stall worker_stuck at step 4, for 1 min 05 s: rollout rollout-1 on mac."),
        ("stall_over", {"name": "no_worker", "step": 4, "seconds": 61.0}, "step 4 goes on, 1 min 01 s after no_worker"),
        ("run_gave_up", {**STALL, "give_up_seconds": 300}, "given up after 5 min 00 s of worker_stuck"),
    ],
)
def test_its_events_are_lines(kind: str, fields: dict[str, Any], expected: str) -> None:
    assert (line_for({"kind": kind, **fields}, 10) or "").startswith(expected)


def test_a_trainer_that_is_there_and_writes_nothing_is_the_stall_itself(tmp_path: Path) -> None:
    found = read_status(run_dir(tmp_path, age_seconds=25, stall=STALL))
    assert found["stale"]
    assert found["stall"]["name"] == "trainer_silent"
    assert found["stall"]["step"] == 4
    assert "for 25 s" in found["stall"]["message"]


@pytest.mark.parametrize("state", ["finished", "failed", "drained", "dead"])
def test_a_run_that_ended_does_not_stall(tmp_path: Path, state: str) -> None:
    assert read_status(run_dir(tmp_path, state=state, age_seconds=1000, stall=STALL))["stall"] is None
