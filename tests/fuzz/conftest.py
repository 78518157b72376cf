"""Tells `scripts/fuzz.py` how many inputs were tried, and which tests failed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tersely.testing import fuzzing

_failed: list[str] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.failed:
        _failed.append(report.nodeid)


def pytest_sessionfinish() -> None:
    if path := os.environ.get("TERSELY_FUZZ_RESULT"):
        Path(path).write_text(json.dumps({"tried": fuzzing.tried, "failed": _failed}))
