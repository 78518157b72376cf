"""Commands of tersely as child processes: one task a cell, several cells at a time, none outliving this process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from filelock import FileLock, Timeout

from tersely.errors import RunDirBusy
from tersely.supervise.failures import ERROR_FILE_ENV, read_failure
from tersely.supervise.lifeline import Lifeline

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
POLL_SECONDS = 0.2
FREE_SECONDS = 60.0
"""How long the processes of a killed predecessor may take to end: more than the grace that their lifelines give."""
LOCKS = (".up.lock", ".trainer.lock")
"""In a run directory, held by its supervisor and by its trainer."""
STOP_SECONDS = 60.0
"""How long a stopped `tersely up` may take; by then it has killed what would not drain."""


class Stopped(Exception):
    """A signal came: `number`."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended: `failure` is one line where it failed, and empty where it did not."""

    failure: str = ""


class Commands:
    """Runs commands of this program; used in a `with` block, from several threads.

    A signal to this process ends them in good order and makes every call raise `Stopped`.
    """

    def __init__(self) -> None:
        self._lifeline = Lifeline()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._signals: list[int] = []
        self._before: dict[int, object] = {}

    def __enter__(self) -> Commands:
        nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        for number in SIGNALS:
            if not (nohup and number == signal.SIGHUP):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        self._stop_all()
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # as signal.signal gave it
        self._lifeline.close()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signals.append(number)

    def check(self) -> None:
        """Raises Stopped once a signal came."""
        if self._signals:
            raise Stopped(self._signals[0])

    def call(self, words: Sequence[str], log: Path, error_file: Path) -> Ended:
        """Runs `tersely WORDS...` to its end.

        Args:
            words: Command and arguments.
            log: Takes its output, after what is there.
            error_file: Where it leaves its error.

        Raises:
            Stopped: A signal came; the command was stopped.
        """
        self.check()
        error_file.unlink(missing_ok=True)
        environment = {**os.environ, **self._lifeline.environment(), ERROR_FILE_ENV: str(error_file)}
        with log.open("ab") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "tersely.cli", *words],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environment,
                pass_fds=(self._lifeline.read_fd,),
                start_new_session=True,  # a terminal's Ctrl-C reaches this process alone
            )
        with self._lock:
            self._running.add(process)
        try:
            while process.poll() is None:
                self.check()
                time.sleep(POLL_SECONDS)
        finally:
            if process.poll() is not None:
                with self._lock:
                    self._running.discard(process)
        self.check()
        if process.returncode == 0:
            return Ended()
        failure = read_failure(error_file, process.returncode)
        if failure is not None:
            return Ended(f"{failure.kind}: {failure}")
        return Ended(f"tersely {words[0]} ended with code {process.returncode}; its output is in {log}")

    def _stop_all(self) -> None:
        with self._lock:
            left = [process for process in self._running if process.poll() is None]
        for process in left:
            process.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        for process in left:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def held_alone(folder: Path) -> Iterator[None]:
    """Keeps a second `tersely ablate` out of a directory.

    Raises:
        RunDirBusy.
    """
    lock = FileLock(folder / ".ablate.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RunDirBusy(
            f"Another `tersely ablate` works in {folder}.", "Wait for it, stop it, or give another --dir."
        ) from None
    try:
        yield
    finally:
        lock.release()


def wait_until_free(run_dir: Path, seconds: float = FREE_SECONDS) -> None:
    """Waits for a `tersely up` in a run directory, and for its trainer: those of a killed predecessor are about to end.

    Raises:
        RunDirBusy: They do not.
    """
    if not run_dir.is_dir():
        return
    deadline = time.monotonic() + seconds
    for name in LOCKS:
        try:
            with FileLock(run_dir / name).acquire(timeout=max(0.0, deadline - time.monotonic())):
                continue
        except Timeout:
            raise RunDirBusy(
                f"A `tersely up` that is not ours works in {run_dir}.", "Wait for it, or stop it, then start again."
            ) from None
