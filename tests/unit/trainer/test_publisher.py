"""Publishing beside the training thread: the label is in the log before anybody hears of it, and nothing overtakes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tersely.config import Recipe
from tersely.errors import DiskFull
from tersely.telemetry.events import EventLog, read_events
from tersely.testing.channel import hash_of, make_weights, stepped
from tersely.trainer.history import History
from tersely.trainer.parts import Standing
from tersely.trainer.publishing import Publisher
from tersely.trainer.wal import WriteAheadLog, read_records
from tersely.types import PolicyVersion, WeightsLabel
from tersely.weights.probe import Probe
from tersely.weights.store import SnapshotStore

V0 = WeightsLabel(PolicyVersion(0), "hash-0")


class LearnerOf:
    """Holds weights that `train` changes in place."""

    def __init__(self) -> None:
        self.weights = make_weights(size=2000)

    def train(self, step: int) -> None:
        self.weights = stepped(self.weights, step, share=0.5)

    def published(self) -> dict[str, torch.Tensor]:
        return {name: tensor.clone() for name, tensor in self.weights.items()}

    def probe(self) -> Probe:
        return Probe((3, 4), (-1.0,))

    def low_rank(self) -> None:
        return None


class Told:
    """A collector that writes down what it is told, and what stood in the log then."""

    def __init__(self, log: Path) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self._log = log

    def know_label(self, label: WeightsLabel) -> None:
        committed = [r.version_committed.weights.weights_sha256 for r in read_records(self._log)]
        self.calls.append(("know_label", label.policy_version, label.weights_sha256 in committed))

    def begin_step(self, current: WeightsLabel, step: int) -> None:
        self.calls.append(("begin_step", current.policy_version, step))

    def expect_version(self, version: PolicyVersion, step: int) -> None:
        self.calls.append(("expect_version", version, step))


class Desk:
    """A publisher with its surroundings; `hold` keeps it from making payloads until `go_on` is set."""

    def __init__(self, folder: Path, *, max_staleness: int) -> None:
        self.wal = WriteAheadLog(folder / "run.wal")
        self.events = EventLog(folder / "events.jsonl")
        self.store = SnapshotStore("r", folder, (2,), 1024, incarnation=1)
        self.learner = LearnerOf()
        self.collector = Told(self.wal.path)
        self.go_on, self.began = threading.Event(), threading.Event()
        prepare = self.store.prepare

        def held(*args: Any, **kwargs: Any) -> Any:
            self.began.set()
            assert self.go_on.wait(60)
            return prepare(*args, **kwargs)

        self.store.prepare = held  # type: ignore[method-assign]
        parts: Any = SimpleNamespace(
            recipe=Recipe.model_validate({"run": {"max_staleness": max_staleness}}),
            directory=SimpleNamespace(check_incarnation=lambda: None),
            wal=self.wal,
            events=self.events,
            store=self.store,
            learner=self.learner,
            collector=self.collector,
        )
        self.history = History()
        self.standing = Standing(0, V0, PolicyVersion(0), PolicyVersion(0))
        self.publisher = Publisher(parts, self.standing, self.history)

    def close(self) -> None:
        self.go_on.set()
        self.publisher.close()
        self.wal.close()
        self.events.close()


@pytest.fixture
def make_desk(tmp_path: Path) -> Iterator[Callable[..., Desk]]:
    desks: list[Desk] = []

    def make(max_staleness: int) -> Desk:
        desks.append(Desk(tmp_path, max_staleness=max_staleness))
        return desks[-1]

    yield make
    for desk in desks:
        desk.close()


def test_in_a_synchronous_run_the_version_is_out_when_publishing_returns(make_desk: Callable[..., Desk]) -> None:
    desk = make_desk(0)
    desk.go_on.set()
    desk.publisher.publish(1)
    current = desk.store.current
    assert current is not None
    assert desk.standing.settled_label == current.label
    assert desk.history.versions == {1: current.label}
    assert desk.collector.calls == [("know_label", 1, True), ("begin_step", 1, 2)]


def test_the_next_step_may_be_trained_while_the_weights_before_it_are_made_ready(
    make_desk: Callable[..., Desk],
) -> None:
    desk = make_desk(1)
    desk.learner.train(1)
    expected = hash_of(desk.learner.published())
    desk.publisher.publish(1)
    assert desk.began.wait(60)
    assert (desk.standing.step, desk.standing.version) == (1, 1)
    assert desk.store.current is None
    desk.publisher.check()
    desk.learner.train(2)
    assert desk.history.versions == {}
    desk.go_on.set()
    assert desk.standing.label == WeightsLabel(PolicyVersion(1), expected)
    assert desk.history.versions == {1: desk.standing.label}
    assert desk.collector.calls == [("expect_version", 1, 2), ("know_label", 1, True)]


def test_versions_come_out_in_their_order_each_logged_first(make_desk: Callable[..., Desk]) -> None:
    desk = make_desk(2)
    announced: list[tuple[int, int]] = []
    announce = desk.store.announce

    def counted(snapshot: Any) -> WeightsLabel:
        announced.append((snapshot.label.policy_version, len(list(read_records(desk.wal.path)))))
        return announce(snapshot)

    desk.store.announce = counted  # type: ignore[method-assign]
    desk.go_on.set()
    hashes = []
    for step in range(1, 9):
        desk.learner.train(step)
        hashes.append(hash_of(desk.learner.published()))
        desk.publisher.publish(step)
    desk.publisher.settle()
    assert announced == [(step, step) for step in range(1, 9)]
    assert [desk.history.versions[step].weights_sha256 for step in range(1, 9)] == hashes
    events = list(read_events(desk.events.path))
    assert [(e["step"], e["policy_version"], e["weights_sha256"]) for e in events] == [
        (step, step, hashes[step - 1]) for step in range(1, 9)
    ]


@pytest.mark.parametrize("asks", ["label", "next_version", "check", "settle"])
def test_what_goes_wrong_beside_training_is_raised_to_whoever_asks_next_and_nothing_is_announced(
    make_desk: Callable[..., Desk], monkeypatch: pytest.MonkeyPatch, asks: str
) -> None:
    desk = make_desk(1)

    def full(*_: Any, **__: Any) -> None:
        raise DiskFull("no space left", "")

    monkeypatch.setattr(desk.wal, "append", full)
    desk.go_on.set()
    desk.publisher.publish(1)
    desk.publisher.close()
    ask: dict[str, Callable[[], object]] = {
        "label": lambda: desk.standing.label,
        "next_version": desk.standing.next_version,
        "check": desk.publisher.check,
        "settle": desk.publisher.settle,
    }
    with pytest.raises(DiskFull):
        ask[asks]()
    assert desk.store.current is None
    assert desk.history.versions == {}
    assert list(read_events(desk.events.path)) == []
