"""Starts child processes, restarts those that die, gives up past a limit, and ends all in good order.

Single-threaded: the owner calls `poll` often. A child's life: waiting -> running -> (backoff -> running)* -> stopped.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from tersely.errors import ServiceFailed
from tersely.supervise.failures import ERROR_FILE_ENV, FATAL_EXIT_CODES, read_failure
from tersely.supervise.files import write_json
from tersely.supervise.lifeline import Lifeline

FIRST_BACKOFF_SECONDS = 0.5
LONGEST_BACKOFF_SECONDS = 10.0

ChildState = Literal["waiting", "running", "backoff", "stopped"]


class EventSink(Protocol):
    """Takes what happens to children: service_started, service_died, service_restarted."""

    def __call__(self, kind: str, **fields: object) -> None:
        """One event."""


@dataclass(frozen=True, slots=True)
class RestartLimits:
    """More than `max_restarts` deaths within `window_seconds` and the supervisor gives up."""

    max_restarts: int = 5
    window_seconds: float = 300.0


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """One child.

    Attributes:
        name: Unique, names its log, e.g. "rollout-0".
        role: What it is, e.g. "rollout".
        command: Gives the command line for the n-th start (0 is the first); asked at each start.
        ready: Whether it may be started now; asked at each poll while it waits.
        natural_ends: Exit codes with which it ends for good; any other end is a death.
        environment: For this child alone, as a password.
    """

    name: str
    role: str
    command: Callable[[int], Sequence[str]]
    ready: Callable[[], bool] = lambda: True
    natural_ends: frozenset[int] = frozenset()
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(slots=True)
class Child:
    """A child as it is now."""

    spec: ChildSpec
    process: subprocess.Popen[bytes] | None = None
    state: ChildState = "waiting"
    starts: int = 0
    exit_code: int | None = None
    restart_at: float = 0.0
    deaths: deque[float] = field(default_factory=deque)

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self.process.pid if self.process is not None and self.state == "running" else None

    @property
    def restarts(self) -> int:
        """Starts after the first."""
        return max(0, self.starts - 1)


class Supervisor:
    """Keeps children alive. Call `poll` a few times a second, and `stop_all` at the end, whatever happened.

    Args:
        logs: Folder for `<name>.log` (stdout and stderr) and `<name>.error`.
        limits: When to give up on a child.
        on_event: Told about starts and deaths.
        processes_file: Rewritten at every change with name, role, pid, restarts, state of each child.
        environment: Added to the children's environment.
    """

    def __init__(
        self,
        logs: Path,
        limits: RestartLimits,
        *,
        on_event: EventSink,
        processes_file: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.children: dict[str, Child] = {}
        self.restarting = True
        self._logs = logs
        self._limits = limits
        self._on_event = on_event
        self._processes_file = processes_file
        self._environment = dict(environment or {})
        self._lifeline = Lifeline()

    def add(self, spec: ChildSpec) -> None:
        """Takes on a child; the next `poll` starts it once it is ready."""
        self.children[spec.name] = Child(spec)

    def poll(self) -> None:
        """Reaps the dead, starts what is due.

        Raises:
            TerselyError: A child ended with an error that no restart cures; that error itself.
            ServiceFailed: A child died more often than the limit allows.
        """
        now = time.monotonic()
        for child in self.children.values():
            if child.state == "running" and child.process is not None:
                exit_code = child.process.poll()
                if exit_code is not None:
                    self._died(child, exit_code, now)
            due = child.state == "waiting" or (child.state == "backoff" and now >= child.restart_at)
            if due and self.restarting and child.spec.ready():
                self._start(child)

    def stop(self, names: Iterable[str], grace_seconds: float) -> None:
        """SIGTERM to these children, SIGKILL to those still there after `grace_seconds`; none is restarted."""
        chosen = [self.children[name] for name in names]
        for child in chosen:
            self.request_stop(child.spec.name)
        deadline = time.monotonic() + grace_seconds
        for child in chosen:
            if child.process is None:
                continue
            try:
                child.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()
            self._stopped(child)
        self._write_processes()

    def request_stop(self, name: str) -> None:
        """SIGTERM to one child without waiting; its end is then no death."""
        child = self.children[name]
        if child.process is not None and child.process.poll() is None:
            child.process.send_signal(signal.SIGTERM)
        elif child.state != "stopped":
            self._stopped(child)

    def stop_all(self, grace_seconds: float) -> None:
        """Ends every child and the lifeline; call it once, last."""
        self.restarting = False
        self.stop(list(self.children), grace_seconds)
        self._lifeline.close()

    def kill_all(self) -> None:
        """SIGKILL to every child: for the user who asked twice."""
        for child in self.children.values():
            if child.process is not None and child.process.poll() is None:
                child.process.kill()

    def _start(self, child: Child) -> None:
        spec = child.spec
        command = list(spec.command(child.starts))
        error_file = self._logs / f"{spec.name}.error"
        error_file.unlink(missing_ok=True)
        environment = {
            **os.environ,
            **self._environment,
            **spec.environment,
            **self._lifeline.environment(),
            ERROR_FILE_ENV: str(error_file),
            "PYTHONUNBUFFERED": "1",
        }
        with (self._logs / f"{spec.name}.log").open("ab") as log:
            child.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                pass_fds=(self._lifeline.read_fd,),
                start_new_session=True,  # a terminal's Ctrl-C reaches the supervisor alone
            )
        child.state = "running"
        child.exit_code = None
        kind = "service_started" if child.starts == 0 else "service_restarted"
        child.starts += 1
        self._on_event(kind, name=spec.name, role=spec.role, pid=child.process.pid, restarts=child.restarts)
        self._write_processes()

    def _died(self, child: Child, exit_code: int, now: float) -> None:
        spec, process = child.spec, child.process
        child.exit_code = exit_code
        if exit_code in spec.natural_ends:
            self._stopped(child)
            self._write_processes()
            return
        pid = process.pid if process is not None else None
        error = None
        if exit_code in FATAL_EXIT_CODES:
            error = read_failure(self._logs / f"{spec.name}.error", exit_code)
        died = {"name": spec.name, "role": spec.role, "pid": pid, "exit_code": exit_code}
        if error is not None:
            self._on_event("service_died", **died, error=error.kind)
            self._stopped(child)
            self._write_processes()
            raise error
        self._on_event("service_died", **died)
        child.deaths.append(now)
        while child.deaths and child.deaths[0] < now - self._limits.window_seconds:
            child.deaths.popleft()
        if self.restarting and len(child.deaths) > self._limits.max_restarts:
            self._stopped(child)
            self._write_processes()
            raise self._gave_up(child)
        backoff = min(LONGEST_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2 ** (len(child.deaths) - 1))
        child.state, child.restart_at = "backoff", now + backoff
        self._write_processes()

    def _gave_up(self, child: Child) -> ServiceFailed:
        log = self._logs / f"{child.spec.name}.log"
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-1:]
        last = f" Last line of its log: {lines[0][:300]}" if lines else ""
        times = len(child.deaths)
        return ServiceFailed(
            f"{child.spec.name} died {times} time{'s' * (times != 1)} within {self._limits.window_seconds:g} s"
            f" (last {describe_exit(child.exit_code)}).{last}",
            f"Read {log}, mend the cause, then go on with --resume.",
        )

    def _stopped(self, child: Child) -> None:
        if child.process is not None:
            child.exit_code = child.process.poll()
        child.state = "stopped"

    def _write_processes(self) -> None:
        if self._processes_file is None:
            return
        rows = [
            {"name": c.spec.name, "role": c.spec.role, "pid": c.pid, "restarts": c.restarts, "state": c.state}
            for c in self.children.values()
        ]
        write_json(self._processes_file, rows)


def describe_exit(exit_code: int | None) -> str:
    """`exit code 3` or `signal SIGKILL`, for people."""
    if exit_code is None:
        return "still running"
    if exit_code < 0:
        try:
            return f"signal {signal.Signals(-exit_code).name}"
        except ValueError:
            return f"signal {-exit_code}"
    return f"exit code {exit_code}"
