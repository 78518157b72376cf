from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tersely.testing import faultpoints
from tersely.testing.faultpoints import FAULT_ENV, POINTS, FaultPlan

SOURCES = Path(__file__).parents[3] / "services" / "tersely" / "trainer"
VISITS = """
from tersely.testing.faultpoints import reach
for number in range(4):
    print("came", number, flush=True)
    reach("after_ack", lambda: print("last words", flush=True))
    reach("after_step")
"""


def visit(fault: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, FAULT_ENV: fault}
    return subprocess.run([sys.executable, "-c", VISITS], env=environ, capture_output=True, text=True, check=False)


def test_nothing_happens_unless_asked_for() -> None:
    done = visit("")
    assert (done.returncode, done.stdout.count("came"), done.stderr) == (0, 4, "")
    assert "last words" not in done.stdout


def test_the_process_is_killed_at_the_named_visit_and_does_first_what_belongs_there() -> None:
    done = visit("after_ack:3")
    assert done.returncode == -signal.SIGKILL
    assert done.stdout.split("\n") == ["came 0", "came 1", "came 2", "last words", ""]


@pytest.mark.parametrize("spec", ["after_ack", "after_ack:0", "after_ack:x", "nowhere:1", ":1"])
def test_a_fault_that_can_never_happen_is_refused(spec: str) -> None:
    with pytest.raises(ValueError, match="point:count"):
        FaultPlan(spec)


def test_every_point_is_documented_and_stands_somewhere_in_the_trainer() -> None:
    code = "".join(file.read_text() for file in SOURCES.rglob("*.py"))
    assert set(re.findall(r'reach\(\s*"(\w+)"', code)) == set(POINTS)
    assert re.findall(r"^(\w+) {2,}\w", faultpoints.__doc__ or "", re.MULTILINE) == list(POINTS)
