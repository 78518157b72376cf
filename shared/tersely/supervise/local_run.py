"""`tersely up`: the queue server and all services of one run as children of this process."""

from __future__ import annotations

import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Protocol, runtime_checkable

from filelock import FileLock, Timeout

from tersely.config import Recipe
from tersely.errors import RunDirBusy, ServiceFailed, TerselyError
from tersely.rpc.address import Address, free_port
from tersely.supervise.run_dir import RunDir, read_json
from tersely.supervise.supervisor import Child, ChildSpec, RestartLimits, Supervisor
from tersely.telemetry.atomic import write_atomic
from tersely.telemetry.events import EventLog

JUDGE_ENV = "TERSELY_JUDGE"
"""Environment variable in which scorers find the address of the judge's service."""
POLL_SECONDS = 0.1
TRAINER_ENDS = frozenset({0, 75})
"""Finished, and drained before its end; after both there is nothing to restart."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Each ends the run in good order, unless the process was started with it ignored, as by `nohup`."""


class RunView(Protocol):
    """Shows the run while it goes."""

    def refresh(self) -> None:
        """Called at each poll; decides itself whether there is something new to show."""

    def close(self) -> None:
        """Called once, when nothing changes any more."""


class QueueServer(Protocol):
    """The embedded server, as far as it matters here."""

    @property
    def url(self) -> str:
        """Where it answers."""

    @property
    def pid(self) -> int:
        """Its process id."""

    @property
    def alive(self) -> bool:
        """Whether it runs."""

    def start(self) -> None:
        """Starts it, again on the same port after it died; does nothing while it runs."""

    def stop(self) -> None:
        """Ends it."""


@runtime_checkable
class GuardedServer(QueueServer, Protocol):
    """A server with TLS and users, for more than this machine."""

    @property
    def username(self) -> str:
        """User of the trainer, who makes those of the nodes."""

    @property
    def password(self) -> str:
        """Its password; for the trainer's environment alone."""


@dataclass(frozen=True, slots=True)
class UpPlan:
    """What to run.

    Attributes:
        recipe_path: Recipe file, given to the trainer.
        recipe: The same, checked, with overrides.
        overrides: Items of `--set`, given to the trainer.
        run_dir: Run directory, absolute.
        resume: Go on with the run in it.
        environment: Added to the services' environment; the way a Redis password takes.
        cli: Command line that the services' names are appended to.
    """

    recipe_path: Path
    recipe: Recipe
    overrides: tuple[str, ...]
    run_dir: Path
    resume: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
    cli: tuple[str, ...] = (sys.executable, "-m", "tersely.cli")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How it ended: `signal_number` is None when the trainer came to its end."""

    finished: bool
    signal_number: int | None = None

    @property
    def exit_code(self) -> int:
        """0, or 128 + the signal that stopped it."""
        return 0 if self.finished else 128 + (self.signal_number or signal.SIGTERM)


class LocalRun:
    """One run on this machine, from start to end.

    Args:
        plan: What to run.
        view: Shows it.
        make_server: Makes the queue server; None where the recipe names one by URL.
    """

    def __init__(self, plan: UpPlan, view: RunView, make_server: Callable[[Path], QueueServer] | None) -> None:
        self.plan = plan
        self.run_dir = RunDir(plan.run_dir)
        self._view = view
        self._make_server = make_server
        self._server: QueueServer | None = None
        self._signals: list[int] = []
        self._wake = threading.Event()
        self._address: str | None = None
        self._judge = judge_address(plan.recipe)
        self._server_deaths = 0

    def run(self) -> Outcome:
        """Starts all, watches until the trainer ends or a signal comes, ends all.

        Raises:
            RunDirBusy: Another `tersely up` works in this directory.
            ServiceFailed: A service kept dying.
            TerselyError: The error of a child that no restart cures.
        """
        existed, fresh = self.run_dir.path.exists(), not _has_entries(self.run_dir.path)
        self.run_dir.logs.mkdir(parents=True, exist_ok=True)
        earlier = self.run_dir.status.read_text() if self.run_dir.status.exists() else None
        lock = FileLock(self.run_dir.path / ".up.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise RunDirBusy(
                f"Another `tersely up` works in {self.run_dir.path}.",
                "Wait for it, stop it, or give another --run-dir.",
            ) from None
        try:
            with self._catch_signals():
                return self._run_locked()
        except ServiceFailed:
            raise
        except TerselyError:
            if self._address is None:
                self._take_back(existed, fresh=fresh, earlier=earlier)
            raise
        finally:
            lock.release()

    def _run_locked(self) -> Outcome:
        up = self.plan.recipe.up
        self.run_dir.run.unlink(missing_ok=True)
        self.run_dir.status.unlink(missing_ok=True)  # an earlier end of the run is not the end of this one
        with EventLog(self.run_dir.events) as events:
            supervisor = Supervisor(
                self.run_dir.logs,
                RestartLimits(up.max_restarts, up.restart_window_seconds),
                on_event=events.write,
                processes_file=self.run_dir.processes,
                environment={**self.plan.environment, **({JUDGE_ENV: str(self._judge)} if self._judge else {})},
            )
            try:
                if self._make_server is not None:
                    self._server = self._make_server(self.run_dir.valkey)
                    self._server.start()
                for spec in self._specs(supervisor):
                    supervisor.add(spec)
                return self._watch(supervisor, events)
            finally:
                supervisor.stop_all(up.drain_seconds)
                if self._server is not None:
                    self._server.stop()
                self._view.close()

    def _watch(self, supervisor: Supervisor, events: EventLog) -> Outcome:
        trainer = supervisor.children["trainer"]
        while not self._signals:
            supervisor.poll()
            self._keep_server(events)
            self._view.refresh()
            if trainer.state == "stopped":
                return Outcome(finished=self._finished())
            if self._finished():
                supervisor.restarting = False
                if trainer.state != "running":  # it died after its work was done
                    return Outcome(finished=True)
            self._wake.wait(POLL_SECONDS)
        self._drain(supervisor, trainer)
        return Outcome(finished=self._finished(), signal_number=self._signals[0])

    def _drain(self, supervisor: Supervisor, trainer: Child) -> None:
        # The trainer first: it may still need the others to finish the batch in hand.
        supervisor.restarting = False
        supervisor.request_stop("trainer")
        deadline = time.monotonic() + self.plan.recipe.up.drain_seconds
        while trainer.process is not None and trainer.process.poll() is None and time.monotonic() < deadline:
            if len(self._signals) > 1:
                supervisor.kill_all()
            self._view.refresh()
            time.sleep(POLL_SECONDS)
        if trainer.process is not None and trainer.process.poll() is None:
            trainer.process.kill()

    def _specs(self, supervisor: Supervisor) -> Iterator[ChildSpec]:
        recipe, server = self.plan.recipe, self._server
        secret = {recipe.queue.password_env: server.password} if isinstance(server, GuardedServer) else {}
        yield ChildSpec("trainer", "trainer", self._trainer_command, natural_ends=TRAINER_ENDS, environment=secret)

        def listening() -> bool:
            return self._read_address(supervisor.children["trainer"].pid) is not None

        counts = {
            "scorer": recipe.scorer.workers,
            "rollout": recipe.rollout.workers,
            "judge": int(recipe.judge.enabled or self._judge is not None),
        }
        for role, count in counts.items():
            for index in range(count):
                yield ChildSpec(f"{role}-{index}", role, self._node_command(role), ready=listening)

    def _trainer_command(self, start: int) -> Sequence[str]:
        self.run_dir.run.unlink(missing_ok=True)
        command = [
            *self.plan.cli,
            "trainer",
            "--recipe",
            str(self.plan.recipe_path),
            "--run-dir",
            str(self.plan.run_dir),
        ]
        if self._server is not None:
            command += ["--redis-url", self._server.url]
        if isinstance(self._server, GuardedServer):
            command += ["--set", f"queue.username={self._server.username}", "--set", "queue.authority=own"]
        for item in self.plan.overrides:
            command += ["--set", item]
        if self._judge is not None:  # the judge gets its settings from the trainer
            command += ["--set", f"judge.port={self._judge.port}"]
        if start > 0 and self._address is not None:  # the nodes know this address
            command += ["--set", f"rpc.port={self._address.rpartition(':')[2]}"]
        if self.plan.resume or (start > 0 and self.run_dir.holds_run()):
            command.append("--resume")
        return command

    def _node_command(self, role: str) -> Callable[[int], Sequence[str]]:
        return lambda start: [*self.plan.cli, role, "--trainer", str(self._address)]

    def _read_address(self, trainer_pid: int | None) -> str | None:
        run = read_json(self.run_dir.run)
        if run is None or trainer_pid is None or run.get("pid") != trainer_pid:
            return None
        self._address = str(run["trainer_address"])
        return self._address

    def _finished(self) -> bool:
        status = read_json(self.run_dir.status)
        return self.run_dir.report.exists() and status is not None and status.get("state") == "finished"

    def _keep_server(self, events: EventLog) -> None:
        """Starts the queue server again when it died: its append-only file holds what was under way."""
        server = self._server
        if server is None or server.alive:
            return
        url = server.url
        events.write("service_died", name="valkey", role="valkey", pid=server.pid)
        self._server_deaths += 1
        if self._server_deaths <= self.plan.recipe.up.max_restarts:
            damaged = getattr(server, "damaged", 0)
            server.start()
            events.write("service_restarted", name="valkey", role="valkey", pid=server.pid)
            if getattr(server, "damaged", 0) > damaged:
                events.write("queue_data_damaged", folder=str(self.run_dir.valkey))
            if server.url == url:
                return
        raise ServiceFailed(
            f"The queue server died and can't be brought back; its log is in {self.run_dir.valkey}.",
            "Read the log there, then go on with --resume: nothing that was trained is lost.",
        )

    def _take_back(self, existed: bool, *, fresh: bool, earlier: str | None) -> None:
        """Removes what was begun for a run that never came to be; one that was not gone on with stands as it stood."""
        if not fresh:
            if earlier is not None and not self.run_dir.status.exists():
                write_atomic(self.run_dir.status, earlier)
            return
        shutil.rmtree(self.run_dir.path, ignore_errors=True)
        if existed:
            self.run_dir.path.mkdir(exist_ok=True)

    @contextmanager
    def _catch_signals(self) -> Iterator[None]:
        def note(number: int, frame: FrameType | None) -> None:
            self._signals.append(number)
            self._wake.set()

        # Under nohup a hang-up stays ignored. An ignored Ctrl-C is only how shells start background jobs: whoever sends
        # one still means it.
        nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        heeded = [number for number in SIGNALS if not (nohup and number == signal.SIGHUP)]
        before = {number: signal.signal(number, note) for number in heeded}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def judge_address(recipe: Recipe) -> Address | None:
    """Where this machine's judge is to listen for the reward `judge`; a port is picked where the recipe leaves it open.

    It is fixed before anything starts, so that scorers find a judge that was started again. None where the reward is
    not used, names an address of its own, or no endpoint to judge with is configured.
    """
    reward = recipe.rewards.get("judge")
    if reward is None or reward.options.get("address") is not None or recipe.judge.endpoint is None:
        return None
    return Address(recipe.judge.host, recipe.judge.port or free_port(recipe.judge.host)).dialable


def _has_entries(path: Path) -> bool:
    return path.is_dir() and any(path.iterdir())
