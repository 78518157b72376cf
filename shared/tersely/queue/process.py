"""A Redis or Valkey server as a child process: started, waited for, ended, and never two on one folder."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
import redis
import structlog

from tersely.errors import RedisUnreachable

_ATTEMPTS = 5
_DAMAGED = re.compile(
    r"Bad file format reading the append only file|Unrecoverable error reading the append only file"
    r"|Unexpected end of file reading the append only file|AOF manifest"
    r"|AOF file .* (doesn't exist|length\. stat: No such file)"
)
# Runs in a bare interpreter that becomes the server: asks Linux to end it when the thread that started it ends (prctl
# PR_SET_PDEATHSIG = 1, SIGTERM = 15). A preexec_fn would do the same, but is unsafe in a process with threads.
_DIE_WITH_PARENT = (
    "import ctypes, os, sys\n"
    "ctypes.CDLL(None).prctl(1, 15, 0, 0, 0)\n"
    "if os.getppid() != int(sys.argv[1]): sys.exit(1)\n"
    "os.execv(sys.argv[2], sys.argv[2:])\n"
)
DATA_OPTIONS = (
    *("--appendonly", "yes"),
    *("--appendfsync", "everysec"),
    *("--save", ""),
    *("--maxmemory-policy", "noeviction"),
)
"""Everything is kept in an append-only file that is synced every second, and nothing is ever evicted."""


class ServerProcess(ABC):
    """What all servers that are started here have in common.

    Each is in a session of its own, so Ctrl-C in a terminal doesn't reach it before its clients have drained. On Linux
    it ends with its parent if `start` was called in the main thread; elsewhere a left-over server of the folder is
    ended by the next `start`.

    Args:
        folder: Data, log (`valkey.log`) and pid file; made if missing.
        port: Where to listen; 0: a free port, the same again after a restart if nobody took it.

    Attributes:
        damaged: How often data could not be read and was put aside.
    """

    umask = -1
    """For the server's files; -1: that of this process."""

    def __init__(self, folder: Path, port: int = 0) -> None:
        self._folder = folder.resolve()
        self._process: subprocess.Popen[bytes] | None = None
        self._fixed = port > 0
        self._port: int | None = port or None
        self._said_before = 0
        self.damaged = 0

    @property
    def pid(self) -> int:
        """Process id of the server."""
        if self._process is None:
            raise RuntimeError("the queue server has not been started")
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def port(self) -> int:
        """Where it listens."""
        if self._port is None:
            raise RuntimeError("the queue server has not been started")
        return self._port

    def start(self, timeout_seconds: float = 20.0) -> None:
        """Starts the server and waits until it answers; does nothing if it runs.

        Raises:
            RedisUnreachable: No binary for this machine, or the server ended or did not answer in time.
        """
        if self.alive:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        self._end_left_over()
        deadline = time.monotonic() + timeout_seconds
        for attempt in range(1 if self._fixed else _ATTEMPTS):
            # The port can be taken between being found free and being used.
            self._port = self._port if self._port is not None and attempt == 0 else self._pick_port()
            if self._begin(deadline) or (self._put_damaged_data_aside() and self._begin(deadline)):
                (self._folder / "valkey.pid").write_text(f"{self.pid}\n")
                return
            if self.alive:
                break
        self.stop()
        raise self._not_started(self._folder / "valkey.log")

    def _begin(self, deadline: float) -> bool:
        self._said_before = self._log_bytes()
        self._process = self._spawn(self._command(self.port))
        return self._answers(deadline)

    def _put_damaged_data_aside(self) -> bool:
        """Whether the server ended because it could not read its file, which is then out of its way.

        What was in it is lost to the run as with an emptied server: the trainer issues again what was in flight.
        """
        if self.alive:
            return False
        with (self._folder / "valkey.log").open("rb") as log:
            log.seek(self._said_before)
            if not _DAMAGED.search(log.read().decode(errors="replace")):
                return False
        data = self._folder / "appendonlydir"
        self.damaged += 1
        aside = data.with_name(f"{data.name}.damaged-{time.time_ns()}")
        data.rename(aside)
        structlog.get_logger(__name__).warning("queue_data_damaged", put_aside=str(aside), lost="what was in flight")
        return True

    def _log_bytes(self) -> int:
        log = self._folder / "valkey.log"
        return log.stat().st_size if log.exists() else 0

    def stop(self, timeout_seconds: float = 10.0) -> None:
        """Ends the server in good order (SIGTERM), after the timeout by force. Fine to call twice."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        (self._folder / "valkey.pid").unlink(missing_ok=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @abstractmethod
    def _command(self, port: int) -> list[str]:
        """Command line of the server, without secrets: everybody on the machine can read it."""

    @abstractmethod
    def _client(self, port: int) -> redis.Redis:
        """A client that gives up at once, to ask whether it is up; closed by the caller."""

    @abstractmethod
    def _pick_port(self) -> int:
        """A free port."""

    @abstractmethod
    def _not_started(self, log: Path) -> RedisUnreachable:
        """What to tell people when it does not start."""

    def _spawn(self, command: list[str]) -> subprocess.Popen[bytes]:
        command = [*command, "--dir", str(self._folder), *DATA_OPTIONS]
        if sys.platform == "linux" and threading.current_thread() is threading.main_thread():
            command = [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid()), *command]
        with (self._folder / "valkey.log").open("ab") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._folder,
                start_new_session=True,
                umask=self.umask,
            )

    def _answers(self, deadline: float) -> bool:
        with self._client(self._port or 0) as client:
            while time.monotonic() < deadline and self.alive:
                # Refused while it starts, LOADING while it reads its file; somebody else's server has another pid.
                with contextlib.suppress(redis.RedisError):
                    if int(client.info("server")["process_id"]) == self.pid:
                        # INFO is answered while it still reads its file, PING is not.
                        client.ping()
                        return True
                time.sleep(0.02)
        return False

    def _end_left_over(self) -> None:
        """Two servers on one append-only file would ruin it."""
        try:
            process = psutil.Process(int((self._folder / "valkey.pid").read_text()))
            if not process.name().startswith(("valkey", "redis")) or Path(process.cwd()) != self._folder:
                return
            process.terminate()
            _, alive = psutil.wait_procs([process], timeout=10)
            for stubborn in alive:
                stubborn.kill()
        except (OSError, ValueError, psutil.Error):
            return
