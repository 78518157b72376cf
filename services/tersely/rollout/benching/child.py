"""A measured process that does one job after another: a line of JSON in, a line of JSON out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from tersely.errors import ServiceFailed

Answer = dict[str, Any]
_LINES_SHOWN = 15


class Child:
    """Runs a process that calls `serve`; its own output is kept for when it fails.

    Args:
        name: For messages.
        command: What to run.
        environment: Variables beside our own.
    """

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self.name = name
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the child
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**os.environ, **(environment or {})},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def tell(self, job: Mapping[str, Any]) -> None:
        """Hands it a job without waiting for the answer.

        Raises:
            ServiceFailed: It has ended.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(job).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise self._failure() from None

    def hear(self) -> Answer:
        """Waits for the next answer.

        Raises:
            ServiceFailed: It ended without one.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._failure()
        answer: Answer = json.loads(line)
        return answer

    def ask(self, job: Mapping[str, Any]) -> Answer:
        """`tell`, then `hear`."""
        self.tell(job)
        return self.hear()

    def close(self) -> None:
        """Ends it, by force if it does not end by itself."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
            self._process.wait(10)
        except (OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._log.close()

    def _failure(self) -> ServiceFailed:
        code = self._process.wait()
        self._log.seek(0)
        tail = "\n".join(self._log.read().decode(errors="replace").splitlines()[-_LINES_SHOWN:])
        return ServiceFailed(f"The process {self.name} ended with {code}:\n{tail}", "Mend that first.")


def serve(work: Callable[[dict[str, Any]], Mapping[str, Any]]) -> None:
    """The child's side: answers each line of standard input until there are no more.

    What libraries print goes to standard error from here on.

    Args:
        work: Job -> answer.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        answers.write(json.dumps(work(json.loads(line))) + "\n")
        answers.flush()
