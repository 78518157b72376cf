"""A whole `tersely up` with stand-ins for the services and the queue server."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tersely.config import Recipe
from tersely.errors import DataEmpty, RunDirBusy
from tersely.supervise.files import pid_alive
from tersely.supervise.local_run import LocalRun, Outcome, UpPlan, judge_address
from tersely.telemetry.events import read_events
from tersely.view.status import read_status

FAKE = """
import json, os, pathlib, signal, sys, time
role, args = sys.argv[1], sys.argv[2:]
base = pathlib.Path(__file__).parent
with open(base / "calls.jsonl", "a") as file:
    file.write(json.dumps([role, *args]) + "\\n")
(base / ("judge-of-" + role)).write_text(os.environ.get("TERSELY_JUDGE", ""))
if role != "trainer":
    time.sleep(60)
run_dir = pathlib.Path(args[args.index("--run-dir") + 1])
mode = (base / "mode").read_text()
(run_dir / "log").mkdir(exist_ok=True)
(run_dir / "log" / "run.wal").touch()
if mode == "empty":
    error = {"kind": "data_empty", "message": "No record.", "way_out": "Add one."}
    pathlib.Path(os.environ["TERSELY_ERROR_FILE"]).write_text(json.dumps(error))
    sys.exit(21)

def put(name, value):
    (run_dir / "tmp").write_text(json.dumps(value))
    (run_dir / "tmp").rename(run_dir / name)

def end(*_):
    put("status.json", {"state": "draining", "step": 2, "time": time.time()})
    sys.exit(75)

signal.signal(signal.SIGTERM, signal.SIG_IGN if mode == "deaf" else end)
put("status.json", {"state": "training", "step": 1, "time": time.time()})
put("run.json", {"pid": os.getpid(), "trainer_address": "127.0.0.1:4321", "run_id": "r-1"})
while not (base / "finish").exists():
    if (base / "crash").exists():
        (base / "crash").unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.02)
put("report.json", {"steps": 2})
put("status.json", {"state": "finished", "step": 2, "time": time.time()})
if mode == "dies finished":
    os.kill(os.getpid(), signal.SIGKILL)
"""


class FakeServer:
    url = "redis://127.0.0.1:1"

    def __init__(self, folder: Path) -> None:
        self.pid = 0
        self.alive = False
        self.starts = 0

    def start(self) -> None:
        self.alive, self.starts, self.pid = True, self.starts + 1, self.starts + 1

    def stop(self) -> None:
        self.alive = False


class FakeView:
    def __init__(self) -> None:
        self.refreshed = 0
        self.closed = False

    def refresh(self) -> None:
        self.refreshed += 1

    def close(self) -> None:
        self.closed = True


class Stage:
    """A run in a temporary folder, and a hand that does things at the right moments."""

    def __init__(
        self, folder: Path, mode: str = "run", resume: bool = False, sections: dict[str, Any] | None = None
    ) -> None:
        self.folder = folder
        (folder / "fake.py").write_text(FAKE)
        (folder / "mode").write_text(mode)
        self.server = FakeServer(folder)
        self.view = FakeView()
        self.run_dir = folder / "run"
        cli = (sys.executable, "-I", "-S", str(folder / "fake.py"))
        recipe = Recipe.model_validate({"up": {"drain_seconds": 5.0}, **(sections or {})})
        plan = UpPlan(folder / "r.toml", recipe, ("run.steps=2",), self.run_dir, resume, cli=cli)
        self.local_run = LocalRun(plan, self.view, lambda _: self.server)

    def run(self, *hands: Callable[[], object]) -> Outcome:
        def act() -> None:
            try:
                for hand in hands:
                    hand()
            except BaseException:
                self.finish()  # else the run would wait for this thread for ever
                raise

        thread = threading.Thread(target=act)
        thread.start()
        try:
            return self.local_run.run()
        finally:
            thread.join()

    def calls(self) -> list[list[str]]:
        path = self.folder / "calls.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def all_up(self) -> None:
        until(lambda: len(self.calls()) >= 3)

    def finish(self) -> None:
        (self.folder / "finish").touch()

    def processes(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = json.loads((self.run_dir / "processes.json").read_text())
        return rows

    def kinds(self) -> list[tuple[str, str]]:
        return [(event["kind"], event["name"]) for event in read_events(self.run_dir / "events.jsonl")]


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def test_a_run_goes_to_its_end_and_leaves_nobody_behind(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    outcome = stage.run(stage.all_up, stage.finish)
    assert outcome == Outcome(finished=True)
    assert outcome.exit_code == 0
    trainer, *nodes = stage.calls()
    assert trainer[0] == "trainer"
    assert trainer[-2:] == ["--set", "run.steps=2"]
    assert trainer[trainer.index("--redis-url") + 1] == FakeServer.url
    assert "--resume" not in trainer
    assert sorted(nodes) == [[role, "--trainer", "127.0.0.1:4321"] for role in ("rollout", "scorer")]
    assert all(row["state"] == "stopped" and row["pid"] is None for row in stage.processes())
    assert stage.view.closed
    assert not stage.server.alive


def test_a_run_that_a_judge_rewards_has_one_and_its_scorers_know_where(tmp_path: Path) -> None:
    judged = {"rewards": {"length": {}, "judge": {}}, "judge": {"endpoint": "http://127.0.0.1:9/v1"}}
    stage = Stage(tmp_path, sections=judged)
    assert stage.run(lambda: until(lambda: len(stage.calls()) >= 4), stage.finish).finished
    assert sorted(call[0] for call in stage.calls()) == ["judge", "rollout", "scorer", "trainer"]
    address = (tmp_path / "judge-of-scorer").read_text()
    host, _, port = address.rpartition(":")
    (trainer,) = [call for call in stage.calls() if call[0] == "trainer"]
    assert host == "127.0.0.1"
    assert f"judge.port={port}" in trainer


@pytest.mark.parametrize(
    "sections",
    [
        {"judge": {"endpoint": "http://127.0.0.1:9/v1"}},
        {"rewards": {"judge": {"address": "127.0.0.1:7"}}, "judge": {"endpoint": "http://127.0.0.1:9/v1"}},
        {"rewards": {"judge": {}}},
    ],
)
def test_no_judge_is_started_that_nobody_would_ask(sections: dict[str, Any]) -> None:
    assert judge_address(Recipe.model_validate(sections)) is None


def test_a_judge_keeps_the_port_of_the_recipe() -> None:
    judged = {"rewards": {"judge": {}}, "judge": {"endpoint": "http://h/v1", "host": "0.0.0.0", "port": 4711}}
    assert str(judge_address(Recipe.model_validate(judged))) == "127.0.0.1:4711"


def test_a_fatal_error_before_the_run_began_leaves_nothing_half_written(tmp_path: Path) -> None:
    stage = Stage(tmp_path, mode="empty")
    with pytest.raises(DataEmpty, match=r"No record"):
        stage.run()
    assert not stage.run_dir.exists()
    assert not stage.server.alive


def test_a_fatal_error_keeps_what_was_there_before(tmp_path: Path) -> None:
    stage = Stage(tmp_path, mode="empty")
    stage.run_dir.mkdir()
    (stage.run_dir / "notes.txt").write_text("mine")
    with pytest.raises(DataEmpty):
        stage.run()
    assert (stage.run_dir / "notes.txt").read_text() == "mine"


def finished_before(stage: Stage) -> str:
    (stage.run_dir / "log").mkdir(parents=True)
    (stage.run_dir / "log" / "run.wal").touch()
    (stage.run_dir / "report.json").write_text('{"steps": 1}')
    status = json.dumps({"state": "finished", "step": 1, "time": 1.0})
    (stage.run_dir / "status.json").write_text(status)
    return status


def test_a_finished_run_is_gone_on_with_by_all_services(tmp_path: Path) -> None:
    stage = Stage(tmp_path, resume=True)
    finished_before(stage)
    assert stage.run(stage.all_up, stage.finish) == Outcome(finished=True)
    trainer, *nodes = stage.calls()
    assert trainer[-1] == "--resume"
    assert sorted(node[0] for node in nodes) == ["rollout", "scorer"]
    assert json.loads((stage.run_dir / "report.json").read_text()) == {"steps": 2}


def test_a_finished_run_that_can_not_be_gone_on_with_stays_finished(tmp_path: Path) -> None:
    stage = Stage(tmp_path, mode="empty", resume=True)
    status = finished_before(stage)
    with pytest.raises(DataEmpty):
        stage.run()
    assert (stage.run_dir / "status.json").read_text() == status
    assert (stage.run_dir / "report.json").exists()


def test_a_trainer_killed_after_its_work_was_done_leaves_a_finished_run(tmp_path: Path) -> None:
    stage = Stage(tmp_path, mode="dies finished")
    assert stage.run(stage.all_up, stage.finish) == Outcome(finished=True)
    assert [call[0] for call in stage.calls()].count("trainer") == 1
    assert ("service_died", "trainer") in stage.kinds()


def test_an_ignored_hangup_stays_ignored(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        outcome = stage.run(stage.all_up, lambda: os.kill(os.getpid(), signal.SIGHUP), stage.finish)
        assert outcome == Outcome(finished=True)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_sigterm_drains_the_trainer_and_ends_the_rest(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    pids: list[int] = []

    def note_and_stop() -> None:
        until(lambda: all(row["pid"] for row in stage.processes()))
        pids.extend(row["pid"] for row in stage.processes())
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    outcome = stage.run(stage.all_up, note_and_stop)
    assert outcome.exit_code == 128 + signal.SIGTERM
    assert json.loads((stage.run_dir / "status.json").read_text())["state"] == "draining"
    assert not any(map(pid_alive, pids))
    assert read_status(stage.local_run.run_dir)["state"] == "drained"
    assert signal.getsignal(signal.SIGTERM) is before


def test_ctrl_c_is_heeded_although_the_shell_started_us_in_the_background(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        stage = Stage(tmp_path)
        outcome = stage.run(stage.all_up, lambda: os.kill(os.getpid(), signal.SIGINT))
        assert outcome.exit_code == 128 + signal.SIGINT
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_second_signal_ends_all_at_once(tmp_path: Path) -> None:
    stage = Stage(tmp_path, mode="deaf")
    asked: list[float] = []

    def ask_twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.5)
        asked.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    outcome = stage.run(stage.all_up, ask_twice)
    assert outcome.exit_code == 128 + signal.SIGINT
    assert time.monotonic() - asked[0] < 3.0  # the drain would have taken 5


def test_a_trainer_that_somebody_else_drained_ends_the_run_unfinished(tmp_path: Path) -> None:
    stage = Stage(tmp_path)

    def drain() -> None:
        until(lambda: bool(stage.processes()[0]["pid"]))
        os.kill(stage.processes()[0]["pid"], signal.SIGTERM)

    outcome = stage.run(stage.all_up, drain)
    assert (outcome.finished, outcome.exit_code) == (False, 128 + signal.SIGTERM)
    assert [call[0] for call in stage.calls()].count("trainer") == 1


def test_a_crashed_trainer_comes_back_with_resume_on_the_port_that_workers_know(tmp_path: Path) -> None:
    stage = Stage(tmp_path)

    def crash() -> None:
        (tmp_path / "crash").touch()
        until(lambda: [call[0] for call in stage.calls()].count("trainer") == 2)

    outcome = stage.run(stage.all_up, crash, stage.finish)
    assert outcome.finished
    again = [call for call in stage.calls() if call[0] == "trainer"][1]
    assert again[-3:] == ["--set", "rpc.port=4321", "--resume"]
    assert ("service_died", "trainer") in stage.kinds()
    assert ("service_restarted", "trainer") in stage.kinds()
    assert [call[0] for call in stage.calls()].count("rollout") == 1


def test_a_queue_server_that_died_is_started_again(tmp_path: Path) -> None:
    stage = Stage(tmp_path)

    def kill_server() -> None:
        stage.server.alive = False
        until(lambda: stage.server.alive)

    assert stage.run(stage.all_up, kill_server, stage.finish).finished
    assert stage.server.starts == 2
    assert ("service_restarted", "valkey") in stage.kinds()


def test_status_shows_the_new_pid_after_a_worker_was_killed(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    seen: list[int] = []

    def rollout_pids() -> list[int]:
        return [node["pid"] for node in read_status(stage.local_run.run_dir)["nodes"] if node["role"] == "rollout"]

    def kill_worker() -> None:
        until(lambda: len(rollout_pids()) == 1)
        seen.extend(rollout_pids())
        os.kill(seen[0], signal.SIGKILL)
        until(lambda: rollout_pids() not in ([], seen))
        seen.extend(rollout_pids())

    assert stage.run(stage.all_up, kill_worker, stage.finish).finished
    assert len(set(seen)) == 2


def test_a_second_up_in_the_same_directory_is_refused(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    other = Stage(tmp_path)
    caught: list[BaseException] = []

    def second() -> None:
        try:
            other.local_run.run()
        except BaseException as error:  # noqa: BLE001  # carried to the assertion below
            caught.append(error)

    assert stage.run(stage.all_up, second, stage.finish).finished
    assert [type(error) for error in caught] == [RunDirBusy]
