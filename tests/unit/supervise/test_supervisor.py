"""The supervisor with small real children."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from tersely.errors import DataEmpty, ServiceFailed
from tersely.supervise.supervisor import ChildSpec, RestartLimits, Supervisor

SLEEP = "import time; time.sleep(60)"


def python(code: str) -> Callable[[int], Sequence[str]]:
    return lambda start: [sys.executable, "-I", "-S", "-c", code]


def until(condition: Callable[[], bool], supervisor: Supervisor | None = None, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        if supervisor is not None:
            supervisor.poll()
        time.sleep(0.02)


class Fixture:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.supervisors: list[Supervisor] = []

    def make(self, limits: RestartLimits = RestartLimits()) -> Supervisor:  # noqa: B008
        supervisor = Supervisor(
            self.folder,
            limits,
            on_event=lambda kind, **fields: self.events.append((kind, fields)),
            processes_file=self.folder / "processes.json",
        )
        self.supervisors.append(supervisor)
        return supervisor

    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.events]

    def rows(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = json.loads((self.folder / "processes.json").read_text())
        return rows


@pytest.fixture
def fixture(tmp_path: Path) -> Iterator[Fixture]:
    made = Fixture(tmp_path)
    yield made
    for supervisor in made.supervisors:
        supervisor.stop_all(0.0)


def test_a_killed_child_comes_back_under_a_new_pid(fixture: Fixture) -> None:
    supervisor = fixture.make()
    supervisor.add(ChildSpec("w-0", "rollout", python(SLEEP)))
    supervisor.poll()
    first = supervisor.children["w-0"].pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    until(lambda: supervisor.children["w-0"].pid not in (None, first), supervisor)
    assert fixture.kinds() == ["service_started", "service_died", "service_restarted"]
    assert fixture.events[1][1]["exit_code"] == -signal.SIGKILL
    assert fixture.events[1][1]["pid"] == first
    row = fixture.rows()[0]
    assert (row["pid"], row["restarts"], row["state"]) == (supervisor.children["w-0"].pid, 1, "running")


def test_past_the_limit_it_gives_up_and_names_the_log(fixture: Fixture) -> None:
    supervisor = fixture.make(RestartLimits(max_restarts=1, window_seconds=60))
    supervisor.add(ChildSpec("w-0", "rollout", python("print('engine on fire'); raise SystemExit(9)")))
    with pytest.raises(ServiceFailed) as caught:
        until(lambda: False, supervisor)
    assert fixture.kinds().count("service_died") == 2
    assert "engine on fire" in caught.value.message
    assert "w-0.log" in caught.value.way_out


def test_deaths_outside_the_window_are_forgotten(fixture: Fixture) -> None:
    supervisor = fixture.make(RestartLimits(max_restarts=0, window_seconds=0.0))
    supervisor.add(ChildSpec("w-0", "rollout", python("raise SystemExit(9)")))
    with pytest.raises(ServiceFailed):
        until(lambda: False, supervisor)
    patient = fixture.make(RestartLimits(max_restarts=1, window_seconds=0.2))
    patient.add(ChildSpec("w-1", "rollout", python("raise SystemExit(9)")))
    until(lambda: patient.children["w-1"].starts >= 4, patient)
    assert patient.children["w-1"].restarts >= 3


def test_an_error_that_no_restart_cures_is_raised_as_itself(fixture: Fixture) -> None:
    code = (
        "import json, os; open(os.environ['TERSELY_ERROR_FILE'], 'w').write(json.dumps("
        "{'kind': 'data_empty', 'message': 'No record.', 'way_out': 'Add one.'})); raise SystemExit(21)"
    )
    supervisor = fixture.make()
    supervisor.add(ChildSpec("trainer", "trainer", python(code)))
    with pytest.raises(DataEmpty) as caught:
        until(lambda: False, supervisor)
    assert (caught.value.message, caught.value.way_out) == ("No record.", "Add one.")
    assert "service_restarted" not in fixture.kinds()
    assert fixture.events[-1][1]["error"] == "data_empty"


def test_the_same_exit_code_without_an_error_file_is_a_death(fixture: Fixture) -> None:
    supervisor = fixture.make()
    supervisor.add(ChildSpec("trainer", "trainer", python("raise SystemExit(21)")))
    until(lambda: "service_restarted" in fixture.kinds(), supervisor)


def test_a_natural_end_is_no_death(fixture: Fixture) -> None:
    supervisor = fixture.make()
    supervisor.add(ChildSpec("trainer", "trainer", python("pass"), natural_ends=frozenset({0})))
    supervisor.add(ChildSpec("w-0", "rollout", python("pass")))
    until(lambda: supervisor.children["w-0"].starts > 1, supervisor)
    assert supervisor.children["trainer"].state == "stopped"
    assert supervisor.children["trainer"].exit_code == 0
    assert [fields["name"] for kind, fields in fixture.events if kind == "service_died"] == ["w-0"]


def test_a_child_waits_until_it_is_ready_and_gets_its_command_then(fixture: Fixture, tmp_path: Path) -> None:
    gate: list[str] = []
    out = tmp_path / "out"
    supervisor = fixture.make()
    supervisor.add(
        ChildSpec(
            "w-0",
            "rollout",
            lambda start: python(f"open({str(out)!r}, 'w').write({gate[0]!r}); {SLEEP}")(start),
            ready=lambda: bool(gate),
        )
    )
    supervisor.poll()
    assert supervisor.children["w-0"].state == "waiting"
    gate.append("127.0.0.1:5")
    until(lambda: out.exists() and out.read_text() == "127.0.0.1:5", supervisor)


def test_a_child_that_ignores_sigterm_is_killed_after_the_grace(fixture: Fixture, tmp_path: Path) -> None:
    deaf = tmp_path / "deaf"
    code = f"import signal; signal.signal(15, signal.SIG_IGN); open({str(deaf)!r}, 'w').close(); {SLEEP}"
    supervisor = fixture.make()
    supervisor.add(ChildSpec("deaf", "rollout", python(code)))
    supervisor.add(ChildSpec("polite", "rollout", python(SLEEP)))
    supervisor.poll()
    until(deaf.exists)
    supervisor.stop(["deaf", "polite"], 0.3)
    assert supervisor.children["deaf"].exit_code == -signal.SIGKILL
    assert supervisor.children["polite"].exit_code == -signal.SIGTERM
    assert {row["state"] for row in fixture.rows()} == {"stopped"}


def test_children_are_out_of_reach_of_the_terminals_ctrl_c(fixture: Fixture) -> None:
    supervisor = fixture.make()
    supervisor.add(ChildSpec("w-0", "rollout", python(SLEEP)))
    supervisor.poll()
    pid = supervisor.children["w-0"].pid
    assert pid is not None
    assert os.getpgid(pid) != os.getpgid(0)


def test_children_end_with_a_supervisor_that_was_killed(tmp_path: Path) -> None:
    child = f"from tersely.supervise.lifeline import hold_lifeline; hold_lifeline(); print('up'); {SLEEP}"
    parent = (
        "import sys, time; from pathlib import Path\n"
        "from tersely.supervise.supervisor import ChildSpec, RestartLimits, Supervisor\n"
        f"s = Supervisor(Path({str(tmp_path)!r}), RestartLimits(), on_event=lambda kind, **f: None)\n"
        f"s.add(ChildSpec('w', 'rollout', lambda n: [sys.executable, '-c', {child!r}]))\n"
        "s.poll(); print(s.children['w'].pid, flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        log = tmp_path / "w.log"
        until(lambda: "up" in log.read_text())
        process.kill()
    until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
