"""Samples and events of a step when the trainer is killed among them: each row and each event is there once."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from tersely.config import Recipe
from tersely.telemetry.events import EventLog, read_events
from tersely.telemetry.samples import SampleLog, read_samples
from tersely.testing.modules import load_module
from tersely.trainer.health import StepHealth
from tersely.trainer.recorder import Recorder
from tersely.trainer.status import Status
from tersely.types import GroupId, PolicyVersion, WeightsLabel
from tersely.v1 import group_pb2

_traces = load_module(Path(__file__).with_name("traces.py"))

V0 = WeightsLabel(PolicyVersion(0), "00")


class Killed(Exception):
    pass


class Trainer:
    """A recorder whose process dies at the n-th line that it writes."""

    def __init__(self, folder: Path, dies_at: int = 0) -> None:
        self.left = dies_at
        self.folder = folder

    def __enter__(self) -> Recorder:
        self.events = EventLog(self.folder / "events.jsonl")
        self.samples = SampleLog(self.folder / "samples.jsonl")
        recorder = Recorder(self.events, self.samples, Status(), Recipe())
        for log in (self.events, self.samples):
            self._count(log)
        return recorder

    def __exit__(self, *_: object) -> None:
        self.events.close()
        self.samples.close()

    def _count(self, log: Any) -> None:
        append = log.append

        def counted(fields: dict[str, Any]) -> None:
            self.left -= 1
            if self.left == 0:
                raise Killed
            append(fields)

        log.append = counted


def a_group(name: str) -> group_pb2.ScoredGroup:
    group: group_pb2.ScoredGroup = _traces.group_of_lengths(f"p-{name}", [60, 70], Recipe())
    group.group.prompt.group_id = name
    for completion in group.group.completions:
        completion.version_spans.add(weights=V0.to_proto(), first_token=0, token_count=len(completion.token_ids))
    return group


def train(recorder: Recorder, *names: str) -> None:
    values = {field.name: 1 for field in fields(StepHealth)}
    advantages = {GroupId(name): (1.0, -1.0) for name in names}
    health = StepHealth(**{**values, "advantages": advantages, "group_mismatch": {}, "seconds": {}})
    groups = [a_group(name) for name in names]
    recorder.trained(1, groups, health, sampled_at=V0.policy_version, made=V0.policy_version, seconds={}, dropped=0)


def rows(folder: Path) -> Counter[tuple[str, int, str]]:
    return Counter(
        (row["group_id"], row["sample_index"], row["outcome"]) for row in read_samples(folder / "samples.jsonl")
    )


@pytest.mark.parametrize("dies_at", range(1, 8))
def test_a_step_whose_trainer_died_among_its_rows_has_each_once(tmp_path: Path, dies_at: int) -> None:
    with pytest.raises(Killed), Trainer(tmp_path, dies_at) as recorder:
        train(recorder, "g0", "g1")
    with Trainer(tmp_path) as recorder:
        train(recorder, "g0", "g1")
    assert rows(tmp_path) == {(name, index, "trained"): 1 for name in ("g0", "g1") for index in range(2)}
    kinds = Counter((event["kind"], event.get("group_id")) for event in read_events(tmp_path / "events.jsonl"))
    assert kinds == {("group_trained", "g0"): 1, ("group_trained", "g1"): 1, ("step_finished", None): 1}


@pytest.mark.parametrize("dies_at", [1, 2])
def test_a_dropped_group_that_is_taken_again_has_each_row_once_and_is_counted_once(
    tmp_path: Path, dies_at: int
) -> None:
    with pytest.raises(Killed), Trainer(tmp_path, dies_at) as recorder:
        recorder.dropped(a_group("g0"), "no_signal", 1)
    with EventLog(tmp_path / "events.jsonl") as events:
        events.write("group_no_signal", group_id="g0")  # the log proves it
    with Trainer(tmp_path) as recorder:
        recorder.dropped(a_group("g0"), "no_signal", 1)
        recorder.dropped(a_group("g0"), "no_signal", 1)
        train(recorder, "g1")
    assert {key: count for key, count in rows(tmp_path).items() if key[0] == "g0"} == {
        ("g0", 0, "no_signal"): 1,
        ("g0", 1, "no_signal"): 1,
    }
    (finished,) = [event for event in read_events(tmp_path / "events.jsonl") if event["kind"] == "step_finished"]
    assert finished["zero_variance"] == 1 / 2
