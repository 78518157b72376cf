"""Evaluations beside training: begun when due, booked in order, taken up again after a kill."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tersely.data.prompts import PreparedPrompt
from tersely.testing.modules import load_module
from tersely.trainer.alarm_desk import AlarmDesk
from tersely.trainer.evaluating import Evaluator
from tersely.trainer.evaluation import EvaluationDesk
from tersely.trainer.issuing import Issuer
from tersely.trainer.keeper import CheckpointKeeper
from tersely.trainer.patience import Patience
from tersely.types import PolicyVersion, RunId, WeightsLabel
from tersely.v1 import group_pb2

keeping = load_module(Path(__file__).with_name("keeping_bench.py"))
collecting = load_module(Path(__file__).with_name("collector_bench.py"))
PROMPTS = [PreparedPrompt(f"e{i}", (1, 2), "doc", "ref", 64, 0) for i in range(2)]


class HeldOutRing:
    """What was sent, and a mark on what was acknowledged."""

    def __init__(self) -> None:
        self.sent: list[group_pb2.PromptGroup] = []

    def evaluation_groups_in_streams(self) -> set[str]:
        return {group.group_id for group in self.sent}

    def send_evaluation(self, groups: list[group_pb2.PromptGroup]) -> None:
        self.sent += groups

    def acknowledge(self, leases: list[Any]) -> None:
        assert len(leases) == 1


class Bench(keeping.Bench):  # type: ignore[misc, name-defined]
    """A keeping bench with an evaluator; `poll` of its collector does what `arrive` was given."""

    def __init__(self, folder: Path, **sections: dict[str, Any]) -> None:
        super().__init__(folder, **sections)
        self.ring = HeldOutRing()
        self.polls: list[Callable[[], None]] = []
        self.parts.ring = self.ring
        self.parts.desk = EvaluationDesk(self.ring)  # type: ignore[arg-type]
        self.parts.eval_prompts = PROMPTS
        self.parts.issuer = Issuer(RunId("r-test"), 1, self.recipe, collecting.Prompts(), (9,))
        self.collector.take_again = lambda: None
        self.collector.poll = self._poll
        self.take_over()

    def take_over(self) -> None:
        """A trainer begins with what is on disk, and with the learner and the standing as they are."""
        self.parts.desk.under_way.clear()
        self.standing = replace(self.standing, evaluating=set())
        self.keeper = CheckpointKeeper(self.parts, self.standing, self.history)
        initial = WeightsLabel(PolicyVersion(0), "hash-of-0")
        self.evaluator = Evaluator(self.parts, self.standing, Patience(self.parts), self.keeper, initial)
        self.alarms = AlarmDesk(self.parts, self.standing, self.keeper, self.history, self.watch, self.evaluator.settle)

    def _poll(self, seconds: float) -> None:
        self.polls.pop(0)()

    def train(self, until: int, **_: Any) -> None:
        while self.standing.step < until:
            super().train(self.standing.step + 1)
            self.evaluator.between()

    def names(self) -> list[str]:
        return [evaluation.name for evaluation in self.parts.desk.under_way]

    def answer(self, step: int) -> None:
        """All prompts of an evaluation come back."""
        for group in self.ring.sent:
            if f"step-{step:06d}" in group.group_id:
                label = WeightsLabel(PolicyVersion(step), f"hash-of-{step}")
                scored = collecting.scored_group(group, (0.0, 1.0), label)
                self.parts.desk.take(SimpleNamespace(group=scored, lease=None))


@pytest.fixture
def bench(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Bench]:
    made = Bench(tmp_path, **getattr(request, "param", {}))
    yield made
    made.close()


def finished(bench: Bench) -> list[str]:
    return [event["name"] for event in bench.kinds("evaluation_finished")]


def checkpoints(bench: Bench) -> list[int]:
    return [int(path.name[-6:]) for path in sorted(bench.directory.checkpoints.glob("step-*"))]


@pytest.mark.parametrize("bench", [{"run": {"steps": 6}}], indirect=True)
def test_evaluations_are_due_every_few_steps_but_not_after_the_last_nor_after_a_roll_back(bench: Bench) -> None:
    due = []
    for step in range(7):
        bench.standing.step = step
        bench.evaluator.between()
        due.append(bench.names())
        bench.parts.desk.under_way.clear()
    assert due == [[], [], ["step-000002"], [], ["step-000004"], [], []]
    bench.standing.step = bench.standing.rolled_back_at = 4
    bench.evaluator.between()
    assert bench.names() == []


def test_training_goes_on_while_an_evaluation_is_under_way_and_its_weights_and_checkpoint_stay(bench: Bench) -> None:
    bench.train(2)
    assert bench.ring.sent == [], "training groups are sent first"
    bench.evaluator.tend()
    assert len(bench.ring.sent) == 2
    assert bench.status.snapshot()["evaluation"] == {"name": "step-000002", "done": 0, "of": 2}
    bench.train(5)
    label = WeightsLabel(PolicyVersion(2), "hash-of-2")
    assert (checkpoints(bench), bench.parts.store.pins[label]) == ([2, 4, 5], 1)
    bench.evaluator.tend()
    bench.answer(2)
    bench.evaluator.tend()
    assert (finished(bench), bench.best()["step"], bench.parts.store.pins[label]) == (["step-000002"], 2, 0)
    assert bench.status.snapshot()["evaluation"]["name"] == "step-000004"


def test_figures_count_in_the_order_in_which_the_evaluations_were_due(bench: Bench) -> None:
    bench.train(4)
    bench.evaluator.tend()
    bench.answer(4)
    bench.evaluator.tend()
    assert finished(bench) == []
    bench.answer(2)
    bench.evaluator.tend()
    assert finished(bench) == ["step-000002", "step-000004"]
    assert bench.best()["step"] == 2, "of equals the earliest"
    bench.train(7)
    assert checkpoints(bench) == [2, 6, 7]


def test_training_waits_for_the_first_when_a_third_is_due(bench: Bench) -> None:
    bench.polls = [lambda: None, lambda: bench.answer(2)]
    bench.train(6)
    assert (bench.polls, finished(bench), bench.names()) == ([], ["step-000002"], ["step-000004", "step-000006"])


def test_what_a_kill_interrupted_is_taken_up_again_with_its_own_weights(bench: Bench) -> None:
    bench.train(2)
    bench.evaluator.tend()
    bench.answer(2)
    bench.evaluator.tend()
    bench.train(5)
    bench.take_over()
    bench.evaluator.resume(bench.history)
    assert bench.names() == ["step-000004"]
    assert bench.standing.evaluating == {4}
    label = WeightsLabel(PolicyVersion(4), "hash-of-4")
    assert (bench.parts.desk.under_way[0].label, bench.parts.store.pins[label] >= 1) == (label, True)
    assert bench.learner.weight == 5, "the learner is where it was"
    bench.evaluator.tend()
    bench.answer(4)
    assert bench.evaluator.settle()
    assert finished(bench) == ["step-000002", "step-000004"]


ROLL_BACK = {"alarms": {"action": "roll_back", "window_steps": 3}}


@pytest.mark.parametrize("bench", [ROLL_BACK], indirect=True)
def test_a_roll_back_waits_for_the_figures_that_name_the_best(bench: Bench) -> None:
    bench.train(3)
    bench.polls = [lambda: bench.answer(2)]
    bench.watch.next = [keeping.SPIKE]
    bench.alarms.after_step({"step": 3}, [])
    assert (bench.polls, bench.learner.weight) == ([], 2)
    assert [event["to_step"] for event in bench.kinds("rolled_back")] == [2]


@pytest.mark.parametrize("bench", [ROLL_BACK], indirect=True)
def test_a_roll_back_that_a_drain_put_off_is_made_when_the_run_is_resumed(bench: Bench) -> None:
    bench.train(3)
    bench.polls = [bench.drain.set]
    bench.watch.next = [keeping.SPIKE]
    bench.alarms.after_step({"step": 3}, [])
    assert bench.kinds("rolled_back") == []
    bench.events.write("alarm", name="gradient_jump", step=3, setting="learner.learning_rate")
    bench.events.write("roll_back_put_off", step=3, alarms=["gradient_jump"])
    bench.events.write("run_drained", step=3)
    bench.drain = bench.parts.drain = keeping.DrainSignal()
    bench.take_over()
    bench.evaluator.resume(bench.history)
    bench.polls = [lambda: bench.answer(2)]
    bench.alarms.resume()
    assert [event["to_step"] for event in bench.kinds("rolled_back")] == [2]
