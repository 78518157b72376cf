"""A whole ablation with real processes: killed without warning while it trains, and gone on with."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

TINY = Path(__file__).parents[2] / "recipes" / "tiny.toml"
FILE = f"""
[ablation]
recipe = "{TINY}"
schedules = ["staged"]
seeds = [0]
steps = 4
set = ["run.groups_per_step=2"]
[configs.lone]
[configs.r]
rouge_l = 1.0
[measure]
limit = 3
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_an_ablation_killed_in_the_middle_of_a_run_is_completed_by_the_same_command(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(FILE)
    command = [sys.executable, "-m", "tersely.cli", "ablate", str(tmp_path / "a.toml"), "--dir", str(tmp_path / "out")]
    events = tmp_path / "out" / "cells" / "lone-seed0" / "run" / "events.jsonl"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as first:
        while not (events.exists() and '"step_finished"' in events.read_text()):
            assert first.poll() is None, "it ended before its first step"
            time.sleep(0.1)
        first.kill()
    second = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False)
    assert second.returncode == 0, second.stderr
    assert "lone-seed0: goes on" in second.stderr
    report = json.loads(second.stdout)
    assert report == json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["complete"]
    assert [cell["groups_trained"] for cell in report["cells"]] == [8, 8]
    assert [arm["arm"] for arm in report["arms"]] == ["lone", "r staged"]
    assert {(pair["a"], pair["b"], pair["n"]) for pair in report["comparisons"]} == {("lone", "r staged", 3)}
    for name in ("report.html", "report.md"):
        assert "r staged" in (tmp_path / "out" / name).read_text()
