"""The watchdog's thread, and what it asks."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import psutil
import redis
import structlog

from tersely.node.drain import DrainSignal
from tersely.node.heartbeat import Heartbeater
from tersely.queue.connect import address_of, redis_errors
from tersely.supervise.failures import report_failure
from tersely.trainer.ring import Ring
from tersely.trainer.run_directory import RunDirectory
from tersely.trainer.watchdog.clock import AwakeClock
from tersely.trainer.watchdog.watch import Watch, stalled

log = structlog.get_logger(__name__)

TICK_SECONDS = 1.0
_CONSUMERS = {"prompts": "rollout", "eval_prompts": "rollout", "completions": "scorer", "scored": "trainer"}


class RingProbes:
    """Asks Redis, the disk and the operating system.

    Args:
        client: Redis.
        ring: Names the streams.
        heartbeat: The trainer's; writing it is the smallest write there is.
        directory: Of the run.
    """

    def __init__(self, client: redis.Redis, ring: Ring, heartbeat: Heartbeater, directory: RunDirectory) -> None:
        self._client = client
        self._streams = {
            "prompts": ring.keys.prompts,
            "eval_prompts": ring.keys.evaluation_prompts,
            "completions": ring.keys.completions,
            "scored": ring.keys.scored,
        }
        self._heartbeat = heartbeat
        self._directory = directory
        self._address = address_of(client)
        self._process = psutil.Process()

    def write(self) -> None:
        """Writes the trainer's heartbeat."""
        with redis_errors(self._address):
            self._heartbeat.beat()

    def holders(self) -> Mapping[str, Mapping[str, int]]:
        """Entries leased per consumer, per stream."""
        found: dict[str, Counter[str]] = {}
        with redis_errors(self._address):
            for name, key in self._streams.items():
                answer: Any = self._client.xpending(key, _CONSUMERS[name])
                found[name] = Counter(
                    {_text(row["name"]): int(row["pending"]) for row in answer.get("consumers") or ()}
                )
        return found

    def server_seconds(self) -> float:
        """The server's clock."""
        with redis_errors(self._address):
            seconds, micros = self._client.time()
        return float(seconds) + float(micros) / 1e6

    def wall_seconds(self) -> float:
        """Unix time of this machine."""
        return time.time()

    def disk_free_bytes(self) -> int:
        """Free bytes on the run directory's disk."""
        return shutil.disk_usage(self._directory.path).free

    def cpu_seconds(self) -> float:
        """User and system time of this process."""
        used = self._process.cpu_times()
        return float(used.user + used.system)


class Guard:
    """Runs a watch from a thread of its own, and ends the run when that gives up.

    A drain comes first, as from outside: it writes a checkpoint. A trainer that does not end by it within the time
    for that is ended as by the power switch, which it is made to survive.

    Args:
        watch: Looks.
        drain: Ends the loop.
        clock: Seconds awake.
        drain_seconds: Time that it has for that.
        leave: Ends the process at once with an exit code.
    """

    def __init__(
        self,
        watch: Watch,
        drain: DrainSignal,
        clock: AwakeClock,
        drain_seconds: float,
        leave: Callable[[int], Any] = os._exit,
    ) -> None:
        self._watch = watch
        self._clock = clock
        self._drain = drain
        self._drain_seconds = drain_seconds
        self._leave = leave
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> None:
        """Begins to look."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread; waits for a look at a server that does not answer."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._clock.wait(TICK_SECONDS, self._stop.wait)
            if self._stop.is_set():
                return
            try:
                self._watch.tick()
            except Exception as error:  # a watchdog must not be what ends or blinds a run
                log.exception("the watchdog can't look", error=f"{type(error).__name__}: {error}")
            if self._watch.gave_up is not None:
                self._give_up()
                return

    def _give_up(self) -> None:
        self._drain.set()
        if self._stop.wait(self._drain_seconds):
            return
        finding = self._watch.gave_up
        assert finding is not None
        error = stalled(finding)
        log.error("the trainer does not end by itself", seconds=self._drain_seconds, error=str(error))
        report_failure(error)
        sys.stderr.flush()
        self._leave(error.exit_code)


def _text(name: object) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)
