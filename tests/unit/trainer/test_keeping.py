"""The best checkpoint, and what the run does about alarms: on a real log and folder, but no model."""

from __future__ import annotations

from pathlib import Path

import pytest

from tersely.config import Recipe
from tersely.errors import TrainerSuperseded
from tersely.node.drain import DrainSignal
from tersely.telemetry.samples import read_samples
from tersely.testing.modules import load_module
from tersely.trainer import checkpoint
from tersely.trainer.alarm_desk import MAX_ROLL_BACKS
from tersely.trainer.checkpoint import list_checkpoints
from tersely.trainer.history import fold
from tersely.trainer.recorder import Recorder
from tersely.types import PolicyVersion, WeightsLabel

_bench = load_module(Path(__file__).with_name("keeping_bench.py"))
Bench = _bench.Bench
EVERY_STEP = _bench.EVERY_STEP
bench = _bench.bench


def steps_of(bench: Bench) -> list[int]:
    return [checkpoint.step for checkpoint in list_checkpoints(bench.directory.checkpoints)]


def test_the_best_checkpoint_is_kept_beside_the_newest(bench: Bench) -> None:
    for step, value in ((2, 0.2), (4, 0.7), (6, 0.5), (8, 0.7)):
        bench.train(step)
        bench.evaluate(value)
    bench.train(12)
    assert steps_of(bench) == [4, 11, 12]
    assert (bench.best()["step"], bench.best()["value"]) == (4, 0.7), "of equals the earliest"
    assert bench.best()["checkpoint"] == "checkpoints/step-000004"
    assert [event["step"] for event in bench.kinds("best_checkpoint")] == [2, 4]


@pytest.mark.parametrize(
    "bench", [{"evaluation": {"every": 2, "best_by": "greedy.mean_abs_length_error"}}], indirect=True
)
def test_of_length_errors_the_lowest_is_the_best_and_a_missing_figure_never_is(bench: Bench) -> None:
    for step, error in ((2, 9.0), (4, 3.0), (6, 5.0), (8, None)):
        bench.train(step)
        bench.evaluate(0.5, mean_abs_length_error=error)
    assert (bench.best()["step"], bench.best()["value"]) == (4, 3.0)


def test_the_best_of_a_run_that_ended_with_it_stays_the_best_when_the_run_goes_on(bench: Bench) -> None:
    bench.train(4)
    bench.evaluate(0.3)
    bench.train(7)
    bench.evaluate(0.9, "after")
    bench.train(12)
    bench.evaluate(0.4, "after")
    assert (bench.best()["step"], bench.best()["value"]) == (7, 0.9)
    assert steps_of(bench) == [7, 11, 12]
    (bench.directory.checkpoints / "step-000007" / "state.json").unlink()
    bench.keeper.choose_best()
    assert (bench.best()["step"], bench.best()["value"]) == (12, 0.4), "it must be there"


def test_a_best_by_another_figure_is_not_held_against_this_one(bench: Bench) -> None:
    bench.train(2)
    bench.evaluate(0.2, mean_abs_length_error=3.0)
    evaluation = bench.recipe.evaluation.model_copy(update={"best_by": "greedy.mean_abs_length_error"})
    bench.parts.recipe = bench.recipe.model_copy(update={"evaluation": evaluation})
    bench.keeper.choose_best()
    assert (bench.best()["figure"], bench.best()["value"]) == ("greedy.mean_abs_length_error", 3.0)


def test_a_best_that_a_kill_left_unnamed_is_found_again(bench: Bench) -> None:
    bench.train(2)
    bench.evaluate(0.2)
    bench.directory.file("best.json").unlink()
    bench.keeper.choose_best()
    assert bench.best()["step"] == 2


@pytest.mark.parametrize("wakes_up_at", ["before_it_is_written", "inside_checkpoint", "after_checkpoint"])
def test_a_trainer_that_was_superseded_neither_writes_nor_removes_a_checkpoint(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, wakes_up_at: str
) -> None:
    bench.train(4)

    def superseded() -> None:
        bench.directory.file("incarnation").write_text(str(bench.directory.incarnation + 1))

    if wakes_up_at == "before_it_is_written":
        superseded()
        monkeypatch.setattr(bench.learner, "state", lambda: pytest.fail("it began to write"))
    else:
        monkeypatch.setattr(checkpoint, "reach", lambda point: superseded() if point == wakes_up_at else None)
    with pytest.raises(TrainerSuperseded):
        bench.train(5)
    assert steps_of(bench) == [3, 4, *([5] if wakes_up_at == "after_checkpoint" else [])], "none was removed"
    assert not list(bench.directory.checkpoints.glob("*.partial"))


def test_an_evaluation_is_recorded_once_also_when_a_kill_cut_its_rows(bench: Bench) -> None:
    rows = [
        {"group_id": "g", "sample_index": i, "policy_version": 2, "outcome": "evaluation", "evaluation": "step-000002"}
        for i in range(3)
    ]
    result = {"name": "step-000002", "weights_sha256": "x", "greedy": {}, "rows": rows}
    bench.samples.write(**rows[0])
    for _ in range(2):
        Recorder(bench.events, bench.samples, bench.status, bench.recipe).evaluated(result)
    assert [row["sample_index"] for row in read_samples(bench.samples.path)] == [0, 1, 2]
    (event,) = bench.kinds("evaluation_finished")
    assert "rows" not in event


def test_an_alarm_is_told_and_nothing_else_is_done_when_that_is_the_action(bench: Bench) -> None:
    bench.train(4)
    bench.alarm()
    (event,) = bench.kinds("alarm")
    assert (event["name"], event["setting"], event["change"]) == ("gradient_jump", "learner.learning_rate", "Lower it.")
    assert not bench.drain.is_set()


@pytest.mark.parametrize("bench", [{"alarms": {"action": "stop"}}], indirect=True)
def test_an_alarm_can_stop_the_run_and_names_itself(bench: Bench) -> None:
    bench.train(4)
    bench.alarm()
    assert bench.drain.is_set()
    assert "gradient_jump at step 4" in bench.standing.stopped_by
    assert bench.status.snapshot()["stopped_by"] == bench.standing.stopped_by


@pytest.mark.parametrize("bench", [{"alarms": {"action": "stop"}}], indirect=True)
def test_a_stop_that_a_kill_prevented_is_made_up_for_and_one_that_was_made_is_not_repeated(bench: Bench) -> None:
    bench.train(4)
    bench.events.write("alarm", name="gradient_jump", step=4, setting="learner.learning_rate")
    bench.desk.resume()
    assert bench.drain.is_set()
    bench.events.write("run_drained", step=4)
    bench.drain = bench.parts.drain = DrainSignal()
    bench.desk.resume()
    assert not bench.drain.is_set()


ROLL_BACK = {"alarms": {"action": "roll_back", "window_steps": 3}}


@pytest.mark.parametrize("bench", [ROLL_BACK], indirect=True)
def test_a_roll_back_takes_over_the_best_checkpoint_under_a_number_never_used(bench: Bench) -> None:
    bench.train(4)
    bench.evaluate(0.9)
    bench.train(7)
    bench.alarm()
    assert bench.learner.weight == 4
    assert bench.standing.label == WeightsLabel(PolicyVersion(8), "hash-of-4")
    assert bench.standing.step == 7, "steps go on being counted"
    assert sorted(bench.collector.known) == [1, 2, 3, 4, 8], "what versions 5 to 7 sampled is of no use any more"
    assert bench.collector.current == (bench.standing.label, 8), "what comes in now is for the step to come"
    assert bench.watch.rolled_back_to == [4]
    (event,) = bench.kinds("rolled_back")
    assert (event["step"], event["to_step"], event["policy_version"]) == (7, 4, 8)
    logged = fold(bench.wal.records())
    assert logged.rollbacks[7].label == bench.standing.label
    assert [label.policy_version for label in logged.known_labels] == [1, 2, 3, 4, 8]
    bench.train(8)
    assert (bench.learner.weight, bench.standing.label.policy_version) == (5, 9)


@pytest.mark.parametrize("bench", [ROLL_BACK], indirect=True)
def test_without_an_evaluation_it_goes_back_beyond_the_window_and_never_into_what_it_left(bench: Bench) -> None:
    bench.parts.recipe = Recipe.model_validate({**ROLL_BACK, "run": {**EVERY_STEP, "keep_checkpoints": 9}})
    bench.train(6)
    bench.alarm()
    assert bench.kinds("rolled_back")[-1]["to_step"] == 3
    bench.train(8)
    bench.alarm()
    assert sorted(bench.collector.known) == [1, 2, 3, 10]
    assert bench.kinds("rolled_back")[-1]["to_step"] == 3, "4, 5 and 6 were left behind; 7 is too near"


@pytest.mark.parametrize("bench", [ROLL_BACK], indirect=True)
def test_a_run_stops_when_roll_backs_do_not_help_or_there_is_nothing_to_go_back_to(bench: Bench) -> None:
    bench.train(1, checkpoints=False)
    bench.alarm()
    assert "no earlier checkpoint" in bench.standing.stopped_by
    bench.train(2)
    bench.evaluate(0.5)
    for step in range(3, 3 + MAX_ROLL_BACKS):
        bench.train(step)
        bench.alarm()
    assert len(bench.kinds("rolled_back")) == MAX_ROLL_BACKS
    bench.train(9)
    bench.alarm()
    assert len(bench.kinds("rolled_back")) == MAX_ROLL_BACKS
    assert "did not help" in bench.standing.stopped_by


EVERY_FIVE = {"run": {"checkpoint_every": 5}, "evaluation": {}, "alarms": {"window_steps": 8}}


def train_by_the_rules(bench: Bench, until: int, *, drained_at: int = 0) -> None:
    """A checkpoint is written where one is due, and at a drain."""
    while bench.standing.step < until:
        bench.train(bench.standing.step + 1, checkpoints=False)
        if bench.standing.step % 5 == 0:
            bench.keeper.write()
        if bench.standing.step == drained_at:
            bench.keeper.ensure()
            bench.keeper.catch_up()


@pytest.mark.parametrize("bench", [EVERY_FIVE], indirect=True)
@pytest.mark.parametrize("drained_at", [0, 12, 15, 21, 22])
def test_a_drain_does_not_change_what_the_run_goes_back_to(bench: Bench, drained_at: int) -> None:
    train_by_the_rules(bench, 23, drained_at=drained_at)
    target = bench.keeper.target()
    assert target is not None
    assert target.step == 15
    assert steps_of(bench) == [15, 20, *([drained_at] if drained_at > 20 else [])], "it can be resumed where it drained"
    train_by_the_rules(bench, 25)
    assert steps_of(bench) == [20, 25]


@pytest.mark.parametrize("bench", [EVERY_FIVE], indirect=True)
def test_a_kill_before_a_checkpoint_that_was_due_does_not_either(bench: Bench) -> None:
    train_by_the_rules(bench, 14)
    bench.train(15, checkpoints=False)  # and here it was killed
    bench.keeper.catch_up()
    assert steps_of(bench) == [10, 15]
    train_by_the_rules(bench, 23)
    target = bench.keeper.target()
    assert target is not None
    assert target.step == 15


@pytest.mark.parametrize("bench", [EVERY_FIVE], indirect=True)
def test_a_kill_before_the_older_checkpoints_were_removed_does_not_either(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_by_the_rules(bench, 19)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "prune", lambda *_: None)
        train_by_the_rules(bench, 20)
    assert steps_of(bench) == [10, 15, 20]
    target = bench.keeper.target()
    assert target is not None
    assert target.step == 15, "without the one that was to go, none lies before the window, and this is the oldest"
    bench.keeper.catch_up()
    assert steps_of(bench) == [15, 20]


@pytest.mark.parametrize("bench", [{**ROLL_BACK, "run": {"steps": 4}}], indirect=True)
def test_after_the_last_step_an_alarm_is_only_told(bench: Bench) -> None:
    bench.train(4)
    bench.alarm()
    assert (bench.learner.weight, bench.drain.is_set(), len(bench.kinds("alarm"))) == (4, False, 1)
