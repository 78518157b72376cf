"""What the run looks like now: kept by the loop, written to status.json every second by a thread of its own."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Any

import structlog

from tersely.errors import QueueError, TrainerSuperseded
from tersely.telemetry.atomic import write_atomic
from tersely.trainer.run_directory import RunDirectory

log = structlog.get_logger(__name__)


class Status:
    """A thread-safe dictionary with the shape of status.json (docs/protocol.md)."""

    def __init__(self, **facts: Any) -> None:
        self._lock = threading.Lock()
        self._facts: dict[str, Any] = facts

    def update(self, **facts: Any) -> None:
        """Replaces entries."""
        with self._lock:
            self._facts.update(facts)

    def snapshot(self) -> dict[str, Any]:
        """A copy of the top level."""
        with self._lock:
            return dict(self._facts)


class StatusWriter:
    """Refreshes what only Redis knows and writes status.json, once a second and at the end.

    Args:
        directory: Where to write.
        status: What to write.
        refresh: Gives nodes, queues and in-flight counts; may raise QueueError while the server is away.
        interval_seconds: Between two writes.
    """

    def __init__(
        self,
        directory: RunDirectory,
        status: Status,
        refresh: Callable[[], dict[str, Any]],
        interval_seconds: float = 1.0,
    ) -> None:
        self._directory = directory
        self._status = status
        self._refresh = refresh
        self._interval_seconds = interval_seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="status", daemon=True)

    def start(self) -> None:
        """Begins writing."""
        self.write()
        self._thread.start()

    def stop(self) -> None:
        """Writes once more and ends."""
        self._stop.set()
        self._thread.join()
        try:
            self.write()
        except OSError as error:  # must not hide what ended the run, such as the same full disk
            log.warning("the last state can't be written", error=str(error))

    def write(self) -> None:
        """Writes the state now; not once a newer trainer writes it.

        Raises:
            OSError: The disk is full.
        """
        try:
            self._directory.check_incarnation()
        except TrainerSuperseded:
            return
        try:
            self._status.update(**self._refresh(), queue_error=None)
        except QueueError as error:
            self._status.update(queue_error=error.message)
        snapshot = self._status.snapshot()
        snapshot["time"] = time.time()
        write_atomic(self._directory.file("status.json"), json.dumps(snapshot) + "\n", durable=False)

    def _run(self) -> None:
        while not self._stop.wait(self._interval_seconds):
            try:
                self.write()
            except Exception as error:  # a thread that ends here would freeze what the world sees
                log.exception("status.json can't be written", error=str(error))
