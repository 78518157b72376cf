"""docs/reading-the-figures.md names every figure of a step and every alarm, and no alarm that there is not."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from tersely.config import Recipe
from tersely.config.schema import AlarmsSection
from tersely.telemetry.events import EventLog, read_events
from tersely.telemetry.samples import SampleLog
from tersely.testing.modules import load_module
from tersely.trainer.alarms import ALARMS
from tersely.trainer.health import StepHealth
from tersely.trainer.recorder import Recorder
from tersely.trainer.status import Status
from tersely.types import GroupId, PolicyVersion, WeightsLabel
from tersely.v1 import common_pb2

_traces = load_module(Path(__file__).with_name("traces.py"))

DOC = Path(__file__).resolve().parents[3] / "docs" / "reading-the-figures.md"
STAGED = Recipe.model_validate(
    {"run": {"steps": 9}, "stages": [{"name": "one", "steps": 9, "rewards": {"length": {}}}]}
)
V0 = WeightsLabel(PolicyVersion(0), "00")


def section(title: str) -> str:
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", DOC.read_text(), re.M | re.S)
    assert found is not None
    return found[1]


def first_cells(text: str) -> set[str]:
    """Names in backquotes in the first column of the tables."""
    rows = (line.split("|")[1] for line in text.splitlines() if line.startswith("| "))
    return {name for cell in rows for name in re.findall(r"`([a-z0-9_]+)`", cell)}


@pytest.fixture
def recorder(tmp_path: Path):
    with EventLog(tmp_path / "events.jsonl") as events, SampleLog(tmp_path / "samples.jsonl") as samples:
        yield Recorder(events, samples, Status(), STAGED)


def step_figures(recorder: Recorder, path: Path, step: int = 1) -> dict[str, Any]:
    """The last step_finished event after one step on two groups."""
    groups = []
    for i in range(2):
        group = _traces.group_of_lengths(f"p{i}", [60, 70], Recipe())
        group.group.prompt.group_id = f"g{step}-{i}"
        for completion in group.group.completions:
            assert completion.finish_reason == common_pb2.FINISH_REASON_STOP
            completion.version_spans.add(weights=V0.to_proto(), first_token=0, token_count=len(completion.token_ids))
        groups.append(group)
    values = {field.name: 1 for field in fields(StepHealth)}
    advantages = {GroupId(group.group.prompt.group_id): (1.0, -1.0) for group in groups}
    health = StepHealth(**{**values, "advantages": advantages, "group_mismatch": {}, "seconds": {"forward": 0.1}})
    recorder.trained(
        step, groups, health, sampled_at=V0.policy_version, made=V0.policy_version, seconds={"wait": 1.0}, dropped=0
    )
    return [event for event in read_events(path / "events.jsonl") if event["kind"] == "step_finished"][-1]


def test_every_figure_of_a_step_is_explained(recorder: Recorder, tmp_path: Path) -> None:
    figures = step_figures(recorder, tmp_path).keys() - {"time", "kind"}
    assert len(figures) > 35
    assert sorted(figures - first_cells(section("Each step"))) == []


def test_no_figure_is_explained_that_a_step_does_not_have(recorder: Recorder, tmp_path: Path) -> None:
    assert sorted(first_cells(section("Each step")) - step_figures(recorder, tmp_path).keys()) == []


def test_every_alarm_and_every_limit_is_explained() -> None:
    text = section("Alarms")
    assert first_cells(text) == ALARMS.keys()
    limits = {f"alarms.{name}" for name in AlarmsSection.model_fields}
    assert sorted(name for name in limits if f"`{name}`" not in text) == []
    assert set(re.findall(r"`(alarms\.\w+)`", text)) <= limits


def test_groups_that_fell_out_are_shares_of_what_came_in_and_survive_a_restart(
    recorder: Recorder, tmp_path: Path
) -> None:
    def fall(outcome: str, number: int) -> None:
        group = _traces.group_of_lengths(f"q{number}", [60, 60], Recipe())
        group.group.prompt.group_id = f"q{number}"
        for completion in group.group.completions:
            completion.version_spans.add(weights=V0.to_proto(), first_token=0, token_count=61)
        with EventLog(tmp_path / "events.jsonl") as events:
            events.write(f"group_{outcome}", group_id=f"q{number}")
        recorder.dropped(group, outcome, 1)

    for number, outcome in enumerate(("no_signal", "no_signal", "stale")):
        fall(outcome, number)
    again = Recorder(EventLog(tmp_path / "events.jsonl"), SampleLog(tmp_path / "samples.jsonl"), Status(), STAGED)
    first = step_figures(recorder, tmp_path)
    assert (first["zero_variance"], first["stale_share"]) == (2 / 4, 1 / 5)
    second = step_figures(recorder, tmp_path, step=2)
    assert (second["zero_variance"], second["stale_share"]) == (0.0, 0.0)
    assert step_figures(again, tmp_path, step=3)["zero_variance"] == 2 / 4
    json.dumps(second)
