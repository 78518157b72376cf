"""A run that nobody works for names that, and ends with the code of its own when it was told to give up.

More stalls with real processes: scripts/stalls.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tersely.telemetry.events import read_events

TINY = Path(__file__).parents[2] / "recipes" / "tiny.toml"
SETS = ("rollout.workers=0", "watchdog.first_seconds=2", "watchdog.give_up_seconds=2", "evaluation.prompts=0")


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("TERSELY_FAULTS"), reason="half a minute long: make faults")
def test_up_gives_up_on_a_run_without_workers_and_says_why(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    command = [sys.executable, "-m", "tersely.cli", "up", str(TINY), "--run-dir", str(run_dir), "--plain"]
    command += [word for item in SETS for word in ("--set", item)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 114, done.stderr
    assert "stall no_worker at step 1" in done.stdout
    assert "error[run_stalled]" in done.stderr
    assert "no rollout lives" in done.stderr
    assert "Traceback" not in done.stderr
    kinds = [event["kind"] for event in read_events(run_dir / "events.jsonl")]
    assert kinds.index("stall") < kinds.index("run_gave_up")
    assert json.loads((run_dir / "status.json").read_text())["state"] == "failed"
