"""The client's side of a job queue: hands out the batches of one task, and takes each result once."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import redis
import structlog
from rq.job import Job, JobStatus, Retry
from rq.queue import Queue
from rq.serializers import JSONSerializer

from tersely.errors import JobFailed
from tersely.jobs.allowed import AllowedJob
from tersely.jobs.keys import (
    JOB_SECONDS,
    MOST_TRIES,
    REAP_SECONDS,
    TASK_TTL_SECONDS,
    done_key,
    executions_key,
    job_id,
    open_key,
    results_key,
)
from tersely.jobs.reaper import Reaper

FAILURE_TTL_SECONDS = 600
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class BatchResult:
    """What came back for one batch.

    Attributes:
        batch: Its number.
        result: The handler's answer; None when it refused.
        error: The handler's refusal: {"kind", "message", "way_out"}; None when there is a result.
        worker: Name of the worker that did it.
    """

    batch: int
    result: dict[str, Any] | None
    error: dict[str, str] | None
    worker: str


@dataclass(slots=True)
class _Open:
    payload: dict[str, Any]
    label: str
    since: float
    submissions: int = 1


class BatchClient:
    """One task's batches on one queue.

    Whoever calls bounds how many are open at a time (`open_count`), and so how much of the task lies in Redis: an open
    batch is there once as a job, and for a moment once as a result.

    Args:
        client: Connection with binary responses; its socket timeout must exceed the timeouts given to `take`.
        queue: Name of queue and handler, like `score`.
        task: Id of the task, unique; a random one by default.
        job_seconds: Longest a batch may take on a worker.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        client: redis.Redis,
        queue: str,
        task: str | None = None,
        *,
        job_seconds: int = JOB_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.task = task or uuid.uuid4().hex
        self.repeated = 0
        self._client = client
        self._queue = Queue(queue, client, job_class=AllowedJob, serializer=JSONSerializer)
        self._job_seconds = job_seconds
        self._clock = clock
        self._open: dict[int, _Open] = {}
        self._reaper = Reaper([self._queue], clock)
        self._looked = clock()

    @property
    def open_count(self) -> int:
        """Batches submitted and not taken."""
        return len(self._open)

    def worker_count(self) -> int:
        """Workers registered on the queue; one that was killed counts for up to 15 s more."""
        return int(self._client.scard(f"rq:workers:{self._queue.name}"))

    def submit(self, batch: int, payload: dict[str, Any], label: str | None = None) -> None:
        """Hands out a batch.

        Args:
            batch: Its number, unique in the task.
            payload: What the handler gets.
            label: What to call it in messages; its number by default.
        """
        self._open[batch] = _Open(payload, label or f"batch {batch}", self._clock())
        self._enqueue(batch)

    def take(self, timeout_seconds: float = 1.0) -> BatchResult | None:
        """The next result of a batch that has none yet; None if none came in time. Looks after lost jobs meanwhile.

        Raises:
            JobFailed: A batch failed, or took its workers down, as often as it may.
        """
        popped: Any = self._client.blpop([done_key(self.task)], timeout=timeout_seconds)
        if popped is None or self._clock() - self._looked >= REAP_SECONDS:
            self._look_after()
        if popped is None:
            return None
        try:
            answer = json.loads(popped[1])
            batch = int(answer["batch"])
        except (ValueError, RecursionError, OverflowError, KeyError, TypeError):
            # Not from a worker of ours: the batch is still open, and will be answered or tried again.
            log.warning("answer_unreadable", task=self.task, bytes=len(popped[1]))
            return None
        if self._open.pop(batch, None) is None:
            # Done twice: its worker was taken for dead.
            self.repeated += 1
            return None
        self._client.srem(open_key(self.task), job_id(self.task, batch))
        return BatchResult(batch, answer.get("result"), answer.get("error"), str(answer.get("worker", "")))

    def close(self) -> None:
        """Removes all of the task from Redis, also batches that nobody has begun."""
        forget_task(self._client, self._queue, self.task)
        self._open.clear()

    def _enqueue(self, batch: int) -> None:
        key = open_key(self.task)
        with self._client.pipeline() as pipe:
            pipe.sadd(key, job_id(self.task, batch))
            pipe.expire(key, TASK_TTL_SECONDS)
            self._queue.enqueue_many(
                [
                    Queue.prepare_data(
                        self._queue.name,
                        args=[self.task, batch, self._open[batch].payload],
                        timeout=self._job_seconds,
                        result_ttl=0,
                        ttl=TASK_TTL_SECONDS,
                        failure_ttl=FAILURE_TTL_SECONDS,
                        job_id=job_id(self.task, batch),
                        description=f"batch {batch} of {self.task}",
                        retry=Retry(max=MOST_TRIES - 1),
                    )
                ],
                pipeline=pipe,
            )
            pipe.execute()

    def _look_after(self) -> None:
        now = self._clock()
        if now - self._looked < REAP_SECONDS:
            return
        self._looked = now
        self._client.expire(open_key(self.task), TASK_TTL_SECONDS)
        self._reaper.reap_now_and_then(REAP_SECONDS)
        for batch, entry in list(self._open.items()):
            # A result may be on its way: only what has been open for a while is looked at.
            if now - entry.since < REAP_SECONDS:
                continue
            self._look_at(batch, entry)

    def _look_at(self, batch: int, entry: _Open) -> None:
        found = Job.fetch_many([job_id(self.task, batch)], self._client, JSONSerializer)[0]
        if found is not None and found.get_status(refresh=False) != JobStatus.FAILED:
            return
        if self._client.llen(done_key(self.task)):
            return
        if found is not None or entry.submissions >= MOST_TRIES:
            reason = _last_line(found) if found is not None else "its job vanished again and again"
            raise JobFailed(
                f"The job of {entry.label} failed {MOST_TRIES} times on the queue {self._queue.name}: {reason}.",
                "Look into the workers' logs; what is done is kept, and the same command goes on.",
            )
        # Gone without a result: it expired in a long queue, or somebody emptied the server.
        entry.submissions += 1
        entry.since = self._clock()
        self._enqueue(batch)


def forget_task(client: redis.Redis, queue: Queue | str, task: str) -> None:
    """Removes what a task left in Redis: jobs that wait or failed, results. Does nothing for an unknown task.

    A job at work is left to its worker, which drops the result and removes the job.
    """
    if isinstance(queue, str):
        queue = Queue(queue, client, job_class=AllowedJob, serializer=JSONSerializer)
    members: set[Any] = client.smembers(open_key(task))
    # First, so that a worker at one of them drops its result.
    client.delete(open_key(task))
    for one in (member.decode() for member in members):
        waiting = client.lrem(queue.key, 0, one)
        status: Any = client.hget(Job.key_for(one), "status")
        # By hand: Job.delete fails when the job ends meanwhile.
        if waiting or status is None or status.decode() == JobStatus.FAILED.value:
            client.zrem(queue.failed_job_registry.key, one)
            client.delete(Job.key_for(one), executions_key(one), results_key(one))
    # A worker that died between taking a job and beginning it left its id there; others have done the job since.
    for one in queue.intermediate_queue.get_job_ids():
        if one.rpartition("-")[0] == task:
            client.lrem(queue.intermediate_queue.key, 0, one)
    client.delete(done_key(task))


def _last_line(job: Job) -> str:
    latest = job.latest_result()
    lines = (latest.exc_string or "").strip().splitlines() if latest is not None else []
    return lines[-1].rstrip(".") if lines else "for a reason unknown"
