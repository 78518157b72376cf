"""The loop between its steps: what the collector is told, on a real log and folder, but no model and no server."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tersely.config import Recipe
from tersely.node.drain import DrainSignal
from tersely.telemetry.events import EventLog
from tersely.trainer.history import History
from tersely.trainer.loop import TrainingLoop
from tersely.trainer.resume import Position
from tersely.trainer.run_directory import RunDirectory
from tersely.trainer.status import Status
from tersely.trainer.wal import WriteAheadLog
from tersely.types import PolicyVersion, WeightsLabel

V0 = WeightsLabel(PolicyVersion(0), "hash-0")


class Told:
    """A collector that has each batch at once and writes down what it is told."""

    dropped_this_step = 0

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def begin_step(self, current: WeightsLabel, step: int) -> None:
        self.calls.append(("begin_step", current.policy_version, step))

    def close_out(self) -> None:
        self.calls.append(("close_out",))

    def __getattr__(self, name: str) -> Any:
        return lambda *_: [] if name == "batch" else None


def test_what_comes_in_after_a_version_is_published_is_judged_for_the_step_to_come(tmp_path: Path) -> None:
    collector = Told()
    with RunDirectory(tmp_path / "run", resume=False) as directory, EventLog(tmp_path / "events.jsonl") as events:
        wal = WriteAheadLog(directory.log_file)
        parts: Any = SimpleNamespace(
            recipe=Recipe.model_validate({"run": {"steps": 3}}),
            directory=directory,
            wal=wal,
            collector=collector,
            learner=SimpleNamespace(published=dict, probe=lambda: None, low_rank=lambda: None),
            store=SimpleNamespace(
                prepare=lambda version, *_, **__: SimpleNamespace(label=WeightsLabel(version, f"hash-{version}")),
                announce=lambda prepared: prepared.label,
            ),
            events=events,
            recorder=None,
            status=Status(),
            drain=DrainSignal(),
            eval_prompts=[],
        )
        loop = TrainingLoop(parts, Position(0, V0), History(), V0)
        assert collector.calls == [("begin_step", 0, 1)]
        loop._publisher.publish(1)
        assert collector.calls[1:] == [("begin_step", 1, 2)]
        wal.close()


def test_groups_that_come_in_during_the_last_evaluation_are_closed_out_too(tmp_path: Path) -> None:
    collector = Told()
    with RunDirectory(tmp_path / "run", resume=False) as directory, EventLog(tmp_path / "events.jsonl") as events:
        parts: Any = SimpleNamespace(
            recipe=Recipe.model_validate({"run": {"steps": 3}}),
            directory=directory,
            collector=collector,
            learner=SimpleNamespace(),
            events=events,
            status=Status(),
            drain=DrainSignal(),
            recorder=None,
            eval_prompts=[],
        )
        history = History()
        loop = TrainingLoop(parts, Position(3, V0, checkpointed_step=3), history, V0)
        for name in ("settle", "after"):
            setattr(loop._evaluator, name, lambda name=name: collector.calls.append((name,)))
        assert loop.run()
    assert [call[0] for call in collector.calls][-4:] == ["close_out", "settle", "after", "close_out"]
