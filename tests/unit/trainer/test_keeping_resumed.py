"""What a resumed run remembers of alarms, events and stages: on a real log and folder, but no model."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from tersely.config import Recipe
from tersely.testing.modules import load_module
from tersely.trainer.alarm_desk import AlarmDesk
from tersely.trainer.alarms import AlarmWatch
from tersely.trainer.event_repair import repair_events
from tersely.trainer.recorder import Recorder
from tersely.v1 import log_pb2

_bench = load_module(Path(__file__).with_name("keeping_bench.py"))
Bench = _bench.Bench
SPIKE = _bench.SPIKE
bench = _bench.bench


def test_the_real_watch_comes_back_to_the_same_state_from_the_event_log(tmp_path: Path) -> None:
    recipe = Recipe.model_validate({"alarms": {"window_steps": 2}})
    good = {"truncated": 0.0, "mean_abs_length_error": 1.0, "entropy": 1.0}
    bad = {**good, "truncated": 1.0}
    events = [{"kind": "step_finished", "step": step, **(good if step < 4 else bad)} for step in range(1, 7)]
    watch = AlarmWatch(recipe)
    live = [alarm for event in events for alarm in watch.observe(event, [])]
    assert [alarm.name for alarm in live] == ["length_at_limit"]
    told = {"kind": "alarm", **asdict(live[0]), "message": f"{live[0].message} It says: 'the the the'."}
    assert AlarmWatch(recipe).warm_up(events) == live
    assert AlarmWatch(recipe).warm_up([*events, told]) == []


def test_a_resume_with_other_limits_does_not_judge_what_was_trained_before(bench: Bench) -> None:
    bench.train(9, checkpoints=False)
    good = {"truncated": 0.0, "mean_abs_length_error": 1.0, "entropy": 0.5}
    for step in range(1, 10):
        bench.events.write("step_finished", step=step, **good)

    def resume(**limits: float) -> list[tuple[str, int]]:
        watch = AlarmWatch(Recipe.model_validate({"alarms": {"window_steps": 2, **limits}}))
        AlarmDesk(bench.parts, bench.standing, bench.keeper, bench.history, watch).resume()
        return [(event["name"], event["step"]) for event in bench.kinds("alarm")]

    assert resume() == []
    assert resume(entropy_floor=5.0) == []
    bench.train(10, checkpoints=False)
    bench.events.write("step_finished", step=10, **{**good, "truncated": 0.9})
    bench.train(11, checkpoints=False)
    bench.events.write("step_finished", step=11, **{**good, "truncated": 1.0})
    assert resume() == [("length_at_limit", 11)], "of the step at which the run stands, it was not said yet"
    assert resume() == [("length_at_limit", 11)]


def test_events_that_the_log_proves_are_written_again_once(bench: Bench) -> None:
    for number in range(3):
        issued = log_pb2.GroupIssued(group_id=f"g{number}", issue_number=number, prompt_id="p")
        bench.wal.append(log_pb2.LogRecord(group_issued=issued), sync=False)
    dropped = log_pb2.GroupDropped(group_id="g1", outcome=log_pb2.GROUP_OUTCOME_STALE, reason="old")
    bench.wal.append(log_pb2.LogRecord(group_dropped=dropped), sync=True)
    bench.train(1, checkpoints=False)
    bench.events.write("group_issued", group_id="g0", issue_number=0, prompt_id="p")
    assert repair_events(bench.wal.records(), bench.events) == 4
    assert repair_events(bench.wal.records(), bench.events) == 0
    assert [event["group_id"] for event in bench.kinds("group_issued")] == ["g0", "g1", "g2"]
    (stale,) = bench.kinds("group_stale")
    assert (stale["group_id"], stale["issue_number"], stale["reason"], stale["repaired"]) == ("g1", 1, "old", True)
    assert bench.kinds("version_published")[0]["weights_sha256"] == "hash-of-1"


def test_a_stage_is_told_once_where_it_begins(bench: Bench) -> None:
    stages = [
        {"name": "length", "steps": 2, "rewards": {"length": {"weight": 1.0, "final_weight": 0.5}}},
        {"name": "rest", "steps": 1, "rewards": {"length": {}}},
    ]
    recipe = Recipe.model_validate({"run": {"steps": 3}, "stages": stages})
    for step in (1, 2, 2, 3):
        Recorder(bench.events, bench.samples, bench.status, recipe).stage(step)
    began = bench.kinds("stage_began")
    assert [(event["step"], event["name"]) for event in began] == [(1, "length"), (3, "rest")]
    assert began[0]["weights"] == {"length": 1.0}
    assert bench.status.snapshot()["stage"] == "rest"


def test_the_status_shows_the_alarms_that_are_on(bench: Bench) -> None:
    bench.train(3)
    bench.watch.active = [SPIKE]
    bench.alarm()
    assert [alarm["name"] for alarm in bench.status.snapshot()["alarms"]] == ["gradient_jump"]
    assert bench.status.snapshot()["alarms"][0]["setting"] == "learner.learning_rate"
    bench.watch.active = []
    bench.desk.after_step({"step": 3}, [])
    assert bench.status.snapshot()["alarms"] == []
