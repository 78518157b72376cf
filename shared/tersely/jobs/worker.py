"""A worker of job queues: RQ's SimpleWorker, its loop in our hands, and a thread that renews its hold on a job."""

from __future__ import annotations

import json
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import redis
import structlog
from redis import exceptions as faults
from rq.exceptions import DequeueTimeout
from rq.executions import Execution
from rq.job import Job
from rq.queue import Queue
from rq.serializers import JSONSerializer
from rq.timeouts import UnixSignalDeathPenalty
from rq.worker import SimpleWorker

from tersely.errors import RedisUnreachable, TerselyError
from tersely.jobs.allowed import allow_only
from tersely.jobs.keys import (
    JOB_SECONDS,
    LEASE_SECONDS,
    REAP_SECONDS,
    TASK_TTL_SECONDS,
    done_key,
    executions_key,
    open_key,
)
from tersely.jobs.reaper import Reaper
from tersely.queue.connect import address_of, redis_errors

BLOCK_SECONDS = 1
PATIENCE_SECONDS = 60.0

log = structlog.get_logger(__name__)
Handler = Callable[[dict[str, Any]], dict[str, Any]]
"""Payload of a batch to its result, both JSON objects. A TerselyError is the batch's final answer; anything else that
it raises makes RQ try the batch again, on whichever worker is next."""


class BatchTimeout(BaseException):
    """A batch took longer than it may. No Exception, so that no handler takes it for a failure of its own."""


class BatchTimeLimit(UnixSignalDeathPenalty):
    """RQ's time limit by SIGALRM, raising what passes through `except Exception`."""

    def handle_death_penalty(self, signum: int, frame: Any) -> None:
        """Raises BatchTimeout."""
        raise BatchTimeout(f"it took longer than {self._timeout} s")


class JobWorker(SimpleWorker):
    """Works on queues, one per handler, until it is told to stop. `run` belongs in the main thread (RQ's time limit).

    Args:
        client: Connection with binary responses; its socket timeout is raised to 11 s if it is lower.
        handlers: By name; a queue of the same name holds the jobs of each.
        name: Unique name of this worker; a random one by default.

    Attributes:
        batches_finished: Batches answered, with an error or not.
    """

    death_penalty_class = BatchTimeLimit

    def __init__(self, client: redis.Redis, handlers: Mapping[str, Handler], name: str | None = None) -> None:
        self.batches_finished = 0
        functions = {handler: self._performing(function) for handler, function in handlers.items()}
        super().__init__(
            list(handlers),
            name=name,
            connection=client,
            job_class=allow_only(functions),
            serializer=JSONSerializer,
            worker_ttl=LEASE_SECONDS,
            log_job_description=False,
        )
        self._reaper = Reaper(
            [Queue(name, client, job_class=self.job_class, serializer=JSONSerializer) for name in handlers]
        )

    def run(self, stopping: threading.Event) -> None:
        """Works until `stopping` is set; the batch in hand is finished first.

        Raises:
            RedisUnreachable: The server stayed away for a minute.
            QueueError: The server refuses this worker.
        """
        with redis_errors(address_of(self.connection)):
            self._run(stopping)

    def _run(self, stopping: threading.Event) -> None:
        self.register_birth()  # type: ignore[no-untyped-call]
        log.info("ready", queues=self.queue_names(), worker=self.name)
        away_since: float | None = None
        while not stopping.is_set():
            try:
                self._step()
                away_since = None
            except (faults.ConnectionError, faults.TimeoutError):
                now = time.monotonic()
                away_since = away_since or now
                if now - away_since > PATIENCE_SECONDS:
                    raise RedisUnreachable(
                        f"Redis at {address_of(self.connection)} has been away for {now - away_since:.0f} s.",
                        "Start it again, then this worker.",
                    ) from None
                log.warning("redis_away", seconds=round(now - away_since))
                stopping.wait(1.0)
        try:
            self.register_death()  # type: ignore[no-untyped-call]
        except faults.RedisError as error:
            # Its registration expires by itself.
            log.warning("not_signed_off", error=str(error))

    def _step(self) -> None:
        self.heartbeat(LEASE_SECONDS)
        self._reaper.reap_now_and_then(REAP_SECONDS)
        try:
            found = self.queue_class.dequeue_any(
                self.queues,
                BLOCK_SECONDS,
                connection=self.connection,
                job_class=self.job_class,
                serializer=self.serializer,
                death_penalty_class=self.death_penalty_class,
            )
        except DequeueTimeout:
            return
        if found is not None:
            self.execute_job(*found)

    def execute_job(self, job: Job, queue: Queue) -> None:
        """Runs a job here, its execution renewed from a thread meanwhile."""
        self.connection.delete(executions_key(job.id))
        execution = self.prepare_execution(job)
        with self._renewed(job, execution):
            self.perform_job(job, queue, execution)
        self.executions.clear()

    @contextmanager
    def _renewed(self, job: Job, execution: Execution) -> Iterator[None]:
        done = threading.Event()

        def renew() -> None:
            # What can't be interrupted (a hang in native code) loses its job to another worker in the end.
            until = time.monotonic() + (job.timeout or JOB_SECONDS) + LEASE_SECONDS
            while not done.wait(LEASE_SECONDS / 4) and time.monotonic() < until:
                try:
                    self.maintain_heartbeats(job, execution)
                except faults.RedisError as error:
                    log.warning("lease_not_renewed", job=job.id, error=str(error))

        thread = threading.Thread(target=renew, name="job-lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _performing(self, handler: Handler) -> Callable[[str, int, dict[str, Any]], None]:
        def perform(task: str, batch: int, payload: dict[str, Any]) -> None:
            if self._gone(task, batch):
                return
            answer: dict[str, Any] = {"batch": batch, "worker": self.name}
            try:
                answer["result"] = handler(payload)
            except TerselyError as error:
                answer["error"] = {"kind": error.kind, "message": error.message, "way_out": error.way_out}
            if self._gone(task, batch):
                return
            with self.connection.pipeline() as pipe:
                pipe.rpush(done_key(task), json.dumps(answer, ensure_ascii=False, allow_nan=False))
                pipe.expire(done_key(task), TASK_TTL_SECONDS)
                pipe.execute()
            self.batches_finished += 1

        return perform

    def _gone(self, task: str, batch: int) -> bool:
        """Whether the client took its task back, so that nobody would ever take a result out."""
        if self.connection.exists(open_key(task)):
            return False
        log.info("task_gone", task=task, batch=batch)
        return True

    @property
    def dequeue_timeout(self) -> int:
        """Longest block on an empty queue, in seconds; RQ sizes the socket timeout by it."""
        return BLOCK_SECONDS

    def get_heartbeat_ttl(self, job: Job, working_time: float = 0.0) -> int:
        """Seconds after which a job whose worker fell silent counts as lost."""
        return LEASE_SECONDS

    def handle_exception(self, job: Job, *exc_info: Any) -> None:
        """Logs what a job raised; RQ then retries it or files it as failed."""
        # As text: a rendering with local variables would put people's texts into the log.
        log.error("job_raised", job=job.id, traceback="".join(traceback.format_exception(*exc_info)))

    def procline(self, message: str) -> None:
        """Leaves the process title alone."""
