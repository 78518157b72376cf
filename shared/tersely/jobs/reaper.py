"""Gives lost jobs back to their queues, within seconds where RQ takes ten minutes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from rq.queue import Queue
from rq.registry import StartedJobRegistry
from rq.worker_registration import clean_worker_registry

STUCK_SECONDS = 10.0
"""How long a job may lie between queue and worker."""


class Reaper:
    """Looks after the jobs of a few queues. Any number of reapers may watch one queue.

    A job whose worker stopped renewing it is tried again if it has tries left, else it fails (RQ's registry does that
    once it is asked to). A job that a worker took and died before it began is put back into the queue.

    Args:
        queues: With the job class and serializer of their workers.
        clock: Monotonic seconds.
    """

    def __init__(self, queues: Sequence[Queue], clock: Callable[[], float] = time.monotonic) -> None:
        self._queues = queues
        self._clock = clock
        self._last = float("-inf")
        self._between: dict[tuple[str, str], float] = {}

    def reap_now_and_then(self, every_seconds: float) -> None:
        """Reaps if the last time is longer ago than that; cheap when called often."""
        if self._clock() - self._last >= every_seconds:
            self.reap()

    def reap(self) -> None:
        """Looks once at every queue."""
        self._last = now = self._clock()
        between: dict[tuple[str, str], float] = {}
        for queue in self._queues:
            registry = StartedJobRegistry(queue=queue, job_class=queue.job_class)
            registry.cleanup()
            started = {job_id for job_id, _ in registry.get_job_and_execution_ids(cleanup=False)}
            for job_id in queue.intermediate_queue.get_job_ids():
                if job_id in started:
                    continue
                since = self._between.get((queue.name, job_id), now)
                if now - since < STUCK_SECONDS:
                    between[queue.name, job_id] = since
                # Only the reaper that takes it out puts it back.
                elif queue.connection.lrem(queue.intermediate_queue.key, 1, job_id):
                    queue.push_job_id(job_id, at_front=True)
            clean_worker_registry(queue)
        self._between = between
