"""The benchmark of the ring, on the smallest scale: its parts work together and its books add up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tersely.cli.main import app


@pytest.mark.timeout(300)
def test_the_ring_is_measured_with_real_processes(tmp_path: Path) -> None:
    words = ["bench", "ring", "--seconds", "2", "--workers", "1", "--keep", str(tmp_path / "kept"), "--json"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["groups_per_second"] > 0
    assert set(found["scaling"]) == {"1"}
    details = found["details"]
    for books in (details["instant"]["books"], details["latency"]["books"]):
        assert books["issued"] == books["trained"] + books["stale"] + books["no_signal"]
        assert books["quarantined"] == books["in_flight"] == 0
    assert details["instant"]["lone_group_ms"]["round"] > 0
    assert set(details["instant"]["cpu_ms_per_group"]) == {"trainer", "rollout", "scorer", "queue_server", "all"}
    assert list((tmp_path / "kept" / "instant" / "logs").glob("rollout-*.log"))


def test_a_list_of_workers_that_is_none_is_refused() -> None:
    result = CliRunner().invoke(app, ["bench", "ring", "--workers", "1,few"])
    assert result.exit_code != 0
