"""Workers on this machine, started for one command and gone with it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tersely.errors import NoWorkers
from tersely.supervise.lifeline import Lifeline

STOP_SECONDS = 20.0


class LocalWorkers:
    """Processes of a service, started again when they die, up to a limit.

    They end with this process, however it ends. Use as a context manager.

    Args:
        arguments: Command line after `tersely`, like ("scorer", "--redis-url", URL).
        count: Processes; 0 is allowed.
        logs: Folder of their logs, `worker-N.log`.
        environment: Added to that of this process.
        most_restarts: Deaths in all before `check` gives up.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        count: int,
        logs: Path,
        *,
        environment: Mapping[str, str] | None = None,
        most_restarts: int = 5,
    ) -> None:
        self.restarts = 0
        self._command = [sys.executable, "-m", "tersely.cli", *arguments]
        self._count = count
        self._logs = logs
        self._environment = dict(environment or {})
        self._most_restarts = most_restarts
        self._lifeline: Lifeline | None = None
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        self._lifeline = Lifeline()
        self._processes = [self._spawn(number) for number in range(self._count)]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pids(self) -> list[int]:
        """Process ids, one per worker."""
        return [process.pid for process in self._processes]

    def check(self) -> None:
        """Starts dead workers again.

        Raises:
            NoWorkers: They died more often than the limit allows; the message has the end of the last one's log.
        """
        for number, process in enumerate(self._processes):
            code = process.poll()
            if code is None:
                continue
            if self.restarts >= self._most_restarts:
                log = self._logs / f"worker-{number}.log"
                raise NoWorkers(
                    f"The workers died {self.restarts + 1} times, the last with exit code {code}: {_last_words(log)}",
                    f"Read {log}; what is done is kept, and the same command goes on.",
                )
            self.restarts += 1
            self._processes[number] = self._spawn(number)

    def stop(self) -> None:
        """Ends them in good order; by force after 20 s. Fine to call twice."""
        for process in self._processes:
            process.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        for process in self._processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes = []
        if self._lifeline is not None:
            self._lifeline.close()
            self._lifeline = None

    def _spawn(self, number: int) -> subprocess.Popen[bytes]:
        if self._lifeline is None:
            raise RuntimeError("the workers were not started")
        self._logs.mkdir(parents=True, exist_ok=True)
        with (self._logs / f"worker-{number}.log").open("ab") as log:
            return subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | self._environment | self._lifeline.environment(),
                pass_fds=(self._lifeline.read_fd,),
                # Ctrl-C in the terminal is for the command; it tells them itself.
                start_new_session=True,
            )


def _last_words(log: Path) -> str:
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        lines = []
    said = [line for line in lines if line.startswith("error[")] or lines
    return said[-1][:300] if said else "it said nothing."
