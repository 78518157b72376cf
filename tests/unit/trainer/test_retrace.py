"""Going along a log: the learner here writes down what happened to it, as one string."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from tersely.errors import LogCorrupt
from tersely.trainer.checkpoint import Checkpoint, Keeping, list_checkpoints, write_checkpoint
from tersely.trainer.health import StepHealth
from tersely.trainer.history import History, Rollback, fold
from tersely.trainer.learner import Learner
from tersely.trainer.retrace import choose_start, retrace
from tersely.types import PolicyVersion, WeightsLabel
from tersely.v1 import group_pb2, log_pb2


def sha(state: str) -> str:
    return hashlib.sha256(state.encode()).hexdigest()


class Diary:
    """Its state is the list of steps that made it what it is."""

    def __init__(self) -> None:
        self.text = "0"
        self.trained: list[int] = []

    def train(self, batch: Sequence[object], step: int) -> StepHealth:
        self.text += f" {step}"
        self.trained.append(step)
        return cast(StepHealth, object())

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        return {}, {"text": self.text}

    def load_state(self, tensors: Mapping[str, torch.Tensor], meta: Mapping[str, Any]) -> None:
        self.text = meta["text"]


class Run:
    """A run of some steps with roll-backs (step -> step), as its log and checkpoints tell it."""

    def __init__(self, folder: Path, steps: int, rollbacks: Mapping[int, int], checkpoints: Sequence[int]) -> None:
        self.history = History(initial=WeightsLabel(PolicyVersion(0), sha("0")))
        self.end = "0"
        states = {0: "0"}
        version = 0
        for step in range(1, steps + 1):
            version += 1
            self.end = states[step] = f"{self.end} {step}"
            self.history.batches[step] = [group_pb2.ScoredGroup()]
            self.history.last_step = step
            self.history.committed(step, WeightsLabel(PolicyVersion(version), sha(self.end)))
            if step in checkpoints:
                self._write(folder, step, version)
            if step in rollbacks:
                version += 1
                self.end = states[rollbacks[step]]
                label = WeightsLabel(PolicyVersion(version), sha(self.end))
                self.history.rolled_back(Rollback(step, rollbacks[step], label))
        self.checkpoints = list_checkpoints(folder)

    def _write(self, folder: Path, step: int, version: int) -> None:
        facts = {"text": self.end}
        write_checkpoint(
            folder,
            step=step,
            policy_version=version,
            weights_sha256=sha(self.end),
            tensors={"w": torch.zeros(1)},
            learner=facts,
            keeping=Keeping(100),
        )

    def go(self, checkpoints: Sequence[Checkpoint], at_most: int | None = None) -> Diary:
        diary = Diary()
        start = choose_start(self.history, checkpoints, at_most)
        for done in retrace(self.history, cast(Learner, diary), start, checkpoints):
            logged = start.label if done.is_start else self.history.versions.get(done.step)
            if done.rollback is not None:
                logged = done.rollback.label
            assert logged is not None
            assert sha(diary.text) == logged.weights_sha256, f"after {done}"
        return diary


@pytest.fixture(autouse=True)
def no_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tersely.trainer.retrace.training_group", lambda group: group)


def test_a_resume_trains_only_what_comes_after_the_newest_checkpoint(tmp_path: Path) -> None:
    run = Run(tmp_path, 7, {}, (2, 5))
    assert run.go(run.checkpoints).trained == [6, 7]
    assert run.go(run.checkpoints, at_most=4).trained == [3, 4, 5, 6, 7]
    assert run.go(run.checkpoints, at_most=0).trained == list(range(1, 8))


def test_a_resume_after_a_roll_back_begins_at_the_state_that_was_gone_back_to(tmp_path: Path) -> None:
    run = Run(tmp_path, 8, {6: 2}, (2, 4, 6))
    diary = run.go(run.checkpoints)
    assert diary.text == "0 1 2 7 8"
    assert diary.trained == [7, 8]


@pytest.mark.parametrize(
    "rollbacks", [{6: 2}, {5: 4}, {6: 0}, {6: 2, 8: 4}, {6: 2, 8: 6}, {4: 2, 6: 2, 8: 2}, {9: 8}, {9: 2}, {8: 8, 9: 1}]
)
def test_whatever_checkpoints_are_left_the_end_is_that_of_the_run(tmp_path: Path, rollbacks: dict[int, int]) -> None:
    run = Run(tmp_path, 9, rollbacks, (2, 4, 6, 8))
    for count in range(5):
        for left in itertools.combinations(run.checkpoints, count):
            for at_most in (None, *range(10)):
                assert run.go(left, at_most).text == run.end, f"with {[one.step for one in left]} up to {at_most}"


def test_a_checkpoint_written_after_the_roll_back_of_its_step_needs_no_other(tmp_path: Path) -> None:
    run = Run(tmp_path, 6, {6: 2}, (2,))
    run._write(tmp_path, 6, 7)
    (after,) = [checkpoint for checkpoint in list_checkpoints(tmp_path) if checkpoint.step == 6]
    assert run.go([after]).trained == []
    assert run.go([after]).text == "0 1 2"


def test_a_missing_batch_is_a_damaged_log(tmp_path: Path) -> None:
    run = Run(tmp_path, 4, {}, ())
    del run.history.batches[2]
    with pytest.raises(LogCorrupt, match="no batch for step 2"):
        run.go([])


def started(checkpoint_step: int | None, threads: int) -> log_pb2.LogRecord:
    record = log_pb2.TrainerStarted(run_id="r", environment={"threads": str(threads)})
    if checkpoint_step is not None:
        record.checkpoint_step = checkpoint_step
    return log_pb2.LogRecord(trainer_started=record)


def batch(step: int) -> log_pb2.LogRecord:
    return log_pb2.LogRecord(batch_formed=log_pb2.BatchFormed(step=step))


@pytest.mark.parametrize(
    ("records", "threads"),
    [
        ([started(0, 1), batch(1), batch(2), batch(3)], "111"),
        ([started(0, 1), batch(1), batch(2), started(1, 4), batch(3)], "144"),
        ([started(0, 1), batch(1), batch(2), started(2, 4), batch(3), started(0, 2)], "222"),
        ([started(None, 1), batch(1), batch(2), started(None, 4), batch(3)], "114"),
    ],
)
def test_the_log_tells_where_each_step_was_trained_last(records: list[log_pb2.LogRecord], threads: str) -> None:
    history = fold(records)
    assert "".join(history.environment_of(step)["threads"] for step in (1, 2, 3)) == threads


def test_labels_of_rolled_back_steps_are_not_known_any_more(tmp_path: Path) -> None:
    history = Run(tmp_path, 6, {4: 2}, ()).history
    assert [label.policy_version for label in history.known_labels] == [0, 1, 2, 5, 6, 7]
    assert history.highest_version == 7
