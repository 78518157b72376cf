"""A keeper, an alarm desk and an evaluator on a real log and folder, with a learner that only counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tersely.config import Recipe
from tersely.node.drain import DrainSignal
from tersely.telemetry.events import EventLog, read_events
from tersely.telemetry.samples import SampleLog
from tersely.trainer.alarm_desk import AlarmDesk
from tersely.trainer.alarms import Alarm
from tersely.trainer.evaluating import step_name
from tersely.trainer.history import fold
from tersely.trainer.keeper import CheckpointKeeper
from tersely.trainer.parts import Standing
from tersely.trainer.recorder import Recorder
from tersely.trainer.resume import commit_version
from tersely.trainer.run_directory import RunDirectory
from tersely.trainer.status import Status
from tersely.trainer.wal import WriteAheadLog
from tersely.trainer.watchdog.pace import Pace
from tersely.types import PolicyVersion, WeightsLabel

SPIKE = Alarm("gradient_jump", 0, "it jumped", "too fast", "learner.learning_rate", 9.0, 1.0, "Lower it.")


EVERY_STEP = {"steps": 100, "keep_checkpoints": 2, "checkpoint_every": 1}


class CountingLearner:
    """Its only weight is the number of steps it was trained."""

    def __init__(self) -> None:
        self.weight = 0.0

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        return {"w": torch.tensor([self.weight])}, {"steps": int(self.weight)}

    def load_state(self, tensors: dict[str, torch.Tensor], facts: dict[str, Any]) -> None:
        self.weight = float(tensors["w"])

    def published(self) -> dict[str, torch.Tensor]:
        return {"w": torch.tensor([self.weight])}

    def probe(self) -> None:
        return None

    def low_rank(self) -> None:
        return None


class LabelStore:
    def __init__(self) -> None:
        self.pins: Counter[WeightsLabel] = Counter()

    def pin(self, label: WeightsLabel) -> None:
        self.pins[label] += 1

    def unpin(self, label: WeightsLabel) -> None:
        self.pins[label] -= 1

    def hold(self, prepared: SimpleNamespace) -> None:
        self.pin(prepared.label)

    def prepare(self, version: int, tensors: dict[str, torch.Tensor], **_: None) -> SimpleNamespace:
        return SimpleNamespace(label=WeightsLabel(PolicyVersion(version), f"hash-of-{float(tensors['w']):g}"))

    def announce(self, prepared: SimpleNamespace) -> WeightsLabel:
        label: WeightsLabel = prepared.label
        return label


class SayWatch:
    """Raises what it is told to."""

    def __init__(self) -> None:
        self.active: list[Alarm] = []
        self.next: list[Alarm] = []
        self.rolled_back_to: list[int] = []

    def observe(self, figures: dict[str, Any], groups: object) -> list[Alarm]:
        raised, self.next = self.next, []
        return raised

    def warm_up(self, events: object) -> list[Alarm]:
        return []

    def roll_back(self, to_step: int) -> None:
        self.rolled_back_to.append(to_step)


class LabelBook:
    arrived = 0

    def __init__(self) -> None:
        self.known: dict[int, WeightsLabel] = {}
        self.current: tuple[WeightsLabel, int] | None = None

    def know_label(self, label: WeightsLabel) -> None:
        self.known[label.policy_version] = label

    def begin_step(self, current: WeightsLabel, step: int) -> None:
        self.current = (current, step)

    def know_only(self, labels: list[WeightsLabel]) -> None:
        self.known = {label.policy_version: label for label in labels}


class Bench:
    """A run of which only the keeping is real."""

    def __init__(self, folder: Path, **sections: dict[str, Any]) -> None:
        self.recipe = Recipe.model_validate(
            {"evaluation": {"every": 2}, **sections, "run": {**EVERY_STEP, **sections.get("run", {})}}
        )
        self.directory = RunDirectory(folder / "run", resume=False)
        self.events = EventLog(self.directory.file("events.jsonl"))
        self.samples = SampleLog(self.directory.file("samples.jsonl"))
        self.wal = WriteAheadLog(self.directory.log_file)
        self.drain = DrainSignal()
        self.learner, self.collector, self.watch = CountingLearner(), LabelBook(), SayWatch()
        self.status = Status()
        self.parts: Any = SimpleNamespace(
            recipe=self.recipe,
            directory=self.directory,
            wal=self.wal,
            collector=self.collector,
            learner=self.learner,
            store=LabelStore(),
            events=self.events,
            recorder=Recorder(self.events, self.samples, self.status, self.recipe),
            status=self.status,
            drain=self.drain,
            eval_prompts=["one"],
            pace=Pace(),
        )
        self.history = fold(self.wal.records())
        self.standing = Standing(0, WeightsLabel(PolicyVersion(0), "hash-of-0"), PolicyVersion(0), PolicyVersion(0))
        parts: Any = self.parts
        self.keeper = CheckpointKeeper(parts, self.standing, self.history)
        self.desk = AlarmDesk(self.parts, self.standing, self.keeper, self.history, self.watch)  # type: ignore[arg-type]

    def train(self, until: int, *, checkpoints: bool = True) -> None:
        while self.standing.step < until:
            self.learner.weight += 1
            label = LabelStore().prepare(self.standing.next_version(), self.learner.published()).label
            self.standing.step += 1
            self.standing.label = label
            self.collector.know_label(label)
            commit_version(self.wal, self.standing.step, label)
            self.history.committed(self.standing.step, label)
            if checkpoints:
                self.keeper.write()

    def evaluate(self, value: float | None, name: str = "", **figures: float | None) -> None:
        """As if the weights last published had been evaluated."""
        name = name or step_name(self.standing.step)
        of_mode: dict[str, Any] = {"within_5": value, "rewards": {}, **figures}
        result = {
            "name": name,
            "step": self.standing.step,
            "weights_sha256": self.standing.label.weights_sha256,
            "greedy": of_mode,
            "sampled": of_mode,
            "rows": [],
        }
        self.directory.write_json(f"evaluation-{name}.json", result)
        self.keeper.choose_best()

    def best(self) -> dict[str, Any]:
        found: dict[str, Any] = self.directory.read_json("best.json")
        return found

    def alarm(self) -> None:
        self.watch.next = [SPIKE]
        self.desk.after_step({"step": self.standing.step}, [])

    def kinds(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in read_events(self.events.path) if event["kind"] == kind]

    def close(self) -> None:
        for thing in (self.events, self.samples, self.wal):
            thing.close()
        self.directory.release()


@pytest.fixture
def bench(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Bench]:
    made = Bench(tmp_path, **getattr(request, "param", {}))
    yield made
    made.close()
