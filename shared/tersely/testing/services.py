"""A run with its services as processes of their own, for tests that kill, stop and starve them one by one.

Unlike under `tersely up` nothing is restarted by itself: the test decides who starts when, and with which fault.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tersely.queue import connect
from tersely.queue.embedded import EmbeddedServer
from tersely.testing.faultpoints import FAULT_ENV

_LIMITED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
os.execv(sys.argv[2], sys.argv[2:])
"""


class Services:
    """Queue server, scorer and workers of one run, and as many trainers as the test starts.

    Args:
        folder: For everything; the run directory is `run_dir` in it.
        recipe: Recipe file.
        sets: Items of `--set` for the trainer.
        workers: Rollout workers.
        run_dir: Run directory; none: `run` in the folder.
    """

    def __init__(
        self, folder: Path, recipe: Path, sets: Sequence[str], workers: int = 1, run_dir: Path | None = None
    ) -> None:
        self.folder = folder
        self.run_dir = run_dir or folder / "run"
        self._recipe = recipe
        self._address = f"127.0.0.1:{_free_port()}"
        self._sets = (*sets, f"rpc.port={self._address.rpartition(':')[2]}")
        self._workers = workers
        self._server = EmbeddedServer(folder / "valkey")
        self._processes: list[subprocess.Popen[bytes]] = []
        self._joined: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        self._server.start()
        self._joined = [self.start("scorer", "--trainer", self._address)]
        for _ in range(self._workers):
            self._joined.append(self.start("rollout", "--trainer", self._address, "--log-json"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        self._server.stop()

    @property
    def joined(self) -> tuple[subprocess.Popen[bytes], ...]:
        """The scorer and workers that it started by itself."""
        return tuple(self._joined)

    def start(self, role: str, *words: str, fault: str = "", file_limit: int = 0) -> subprocess.Popen[bytes]:
        """Starts a service; its output goes to a file beside the run.

        Args:
            role: As on the command line.
            words: Its arguments.
            fault: Where it is to die, as `point:count`; empty: nowhere.
            file_limit: Most bytes of a file that it can write, as on a full disk; 0: no limit.
        """
        command = [sys.executable, "-m", "tersely.cli", role, *words]
        if file_limit:
            command = [sys.executable, "-c", _LIMITED, str(file_limit), *command]
        environ = {**os.environ, FAULT_ENV: fault}
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._log(role, len(self._processes)).open("wb") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environ)
        self._processes.append(process)
        return process

    def start_trainer(
        self, *, resume: bool, fault: str = "", sets: Sequence[str] = (), file_limit: int = 0
    ) -> subprocess.Popen[bytes]:
        """Starts a trainer on the run; `sets` win over those of the run, the rest is as for `start`."""
        words = ["--recipe", str(self._recipe), "--run-dir", str(self.run_dir), "--redis-url", self._server.url]
        words += ["--resume"] if resume else []
        words += [word for item in (*self._sets, *sets) for word in ("--set", item)]
        return self.start("trainer", *words, fault=fault, file_limit=file_limit)

    def output(self, process: subprocess.Popen[bytes]) -> str:
        """What a process has written so far."""
        (log,) = self.folder.glob(f"*-{self._processes.index(process):03d}.log")
        return log.read_text(errors="replace")

    def kill_workers(self) -> None:
        """Ends scorer and workers without warning."""
        for process in self._joined:
            process.kill()
            process.wait()

    def flush(self) -> None:
        """Empties the queue server."""
        with connect(self._server.url) as client:
            client.flushall()

    def restart_empty(self) -> None:
        """Ends the queue server, loses its data, and starts it again at the same address."""
        url = self._server.url
        self._server.stop()
        shutil.rmtree(self.folder / "valkey")
        self._server.start()
        if self._server.url != url:
            raise RuntimeError(f"the server came back at {self._server.url}, not at {url}")

    def generated(self) -> Iterator[tuple[float, str]]:
        """(Unix time, group id) of each group that a worker has generated."""
        for log in sorted(self.folder.glob("rollout-*.log")):
            for line in log.read_text().splitlines():
                if '"group_generated"' in line:
                    entry = json.loads(line)
                    yield datetime.fromisoformat(entry["timestamp"]).timestamp(), entry["group_id"]

    def report(self) -> dict[str, Any]:
        """report.json of the finished run."""
        report: dict[str, Any] = json.loads((self.run_dir / "report.json").read_text())
        return report

    def _log(self, role: str, number: int) -> Path:
        return self.folder / f"{role}-{number:03d}.log"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
