"""A pipe that ends with the supervisor, however it ends.

The supervisor holds the only write end and never writes. Each child inherits the read end and a thread of it waits for
the end of file, which the kernel delivers after `kill -9` too. Unlike `PR_SET_PDEATHSIG` this works on macOS.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable

LIFELINE_ENV = "TERSELY_LIFELINE_FD"
GRACE_SECONDS = 5.0


class Lifeline:
    """The supervisor's end: `read_fd` goes to children by `pass_fds`, its number by the environment."""

    def __init__(self) -> None:
        self.read_fd, self._write_fd = os.pipe()

    def environment(self) -> dict[str, str]:
        """What a child's environment needs to find the pipe."""
        return {LIFELINE_ENV: str(self.read_fd)}

    def close(self) -> None:
        """Lets go of both ends: children that still run are told to end."""
        os.close(self._write_fd)
        os.close(self.read_fd)


def _end_this_process() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def hold_lifeline(
    on_end: Callable[[], None] = _end_this_process, *, grace_seconds: float = GRACE_SECONDS
) -> threading.Thread | None:
    """In a child: ends this process once the supervisor is gone. Does nothing in a process without a supervisor.

    The process gets SIGTERM first, so that it can end in good order, and ends for good after `grace_seconds`.
    """
    number = os.environ.pop(LIFELINE_ENV, None)
    if number is None:
        return None
    fd = int(number)
    os.set_inheritable(fd, False)

    def watch() -> None:
        while os.read(fd, 1):
            continue
        on_end()
        threading.Event().wait(grace_seconds)
        os._exit(128 + signal.SIGTERM)

    thread = threading.Thread(target=watch, name="lifeline", daemon=True)
    thread.start()
    return thread
