"""Batches go out, results come back once each; lost work is given back, failed work is told, nothing is left."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
import redis
from rq.job import Job
from rq.queue import Queue
from rq.serializers import JSONSerializer

from tersely.errors import ConfigValue, JobFailed
from tersely.jobs import BatchClient, BatchResult, JobWorker
from tersely.jobs.client import forget_task
from tersely.jobs.keys import MOST_TRIES, REAP_SECONDS, done_key, job_id
from tersely.jobs.reaper import STUCK_SECONDS, Reaper


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def client(valkey_client: redis.Redis, clock: Clock) -> BatchClient:
    return BatchClient(valkey_client, "score", "task", clock=clock)


def double(payload: dict[str, Any]) -> dict[str, Any]:
    if payload["n"] < 0:
        raise ConfigValue("A negative number.", "Send another.")
    if payload["n"] > 99:
        raise RuntimeError("too\nlarge")
    return {"n": 2 * payload["n"]}


@pytest.fixture
def worker(valkey_client: redis.Redis) -> JobWorker:
    made = JobWorker(valkey_client, {"score": double})
    made.register_birth()  # type: ignore[no-untyped-call]
    return made


def queue_of(client: redis.Redis) -> Queue:
    return Queue("score", client, serializer=JSONSerializer)


def taken(client: BatchClient) -> BatchResult:
    result = client.take()
    assert result is not None
    return result


def job_ids_in_hand(server: redis.Redis) -> list[str]:
    entries: Any = server.zrange("rq:wip:score", 0, -1)
    return [entry.decode().split(":")[0] for entry in entries]


def keys(server: redis.Redis) -> set[str]:
    found: Any = server.keys("*")
    return {key.decode() for key in found}


def lose(server: redis.Redis, worker: JobWorker) -> None:
    """The worker takes a job and is never heard of again, for longer than its lease."""
    found = worker.queue_class.dequeue_any(
        worker.queues, 1, connection=server, job_class=worker.job_class, serializer=worker.serializer
    )
    assert found is not None
    execution = worker.prepare_execution(found[0])
    worker.prepare_job_execution(found[0], True)
    server.zadd("rq:wip:score", {execution.composite_key: 1})
    server.delete(execution.key)


def test_results_and_refusals_come_back_and_nothing_of_the_task_is_left(
    valkey_client: redis.Redis, client: BatchClient, worker: JobWorker
) -> None:
    for number, n in enumerate([3, -1]):
        client.submit(number, {"n": n})
    for _ in range(2):
        worker._step()
    first, second = taken(client), taken(client)
    assert (first.batch, first.result, first.error, first.worker) == (0, {"n": 6}, None, worker.name)
    assert second.error == {"kind": "config_value", "message": "A negative number.", "way_out": "Send another."}
    assert client.open_count == 0
    client.close()
    worker.register_death()  # type: ignore[no-untyped-call]
    assert keys(valkey_client) == {"rq:queues", f"rq:worker:{worker.name}"}
    assert valkey_client.ttl(f"rq:worker:{worker.name}") > 0


def test_a_batch_whose_worker_died_is_done_by_the_next(
    valkey_client: redis.Redis, client: BatchClient, worker: JobWorker
) -> None:
    client.submit(0, {"n": 1})
    lose(valkey_client, JobWorker(valkey_client, {"score": double}))
    assert queue_of(valkey_client).count == 0
    worker._step()
    assert taken(client).result == {"n": 2}
    client.close()
    worker._step()
    assert (client.repeated, worker.batches_finished) == (0, 1)
    # Nothing of the task, neither as finished nor as failed.
    assert {key for key in keys(valkey_client) if "task" in key or "failed" in key} == set()


def test_a_batch_that_takes_its_workers_down_is_given_up_after_three_of_them(
    valkey_client: redis.Redis, client: BatchClient, clock: Clock
) -> None:
    client.submit(7, {"n": 1}, "lines 5 to 9")
    for _ in range(MOST_TRIES):
        lose(valkey_client, JobWorker(valkey_client, {"score": double}))
        Reaper([queue_of(valkey_client)]).reap()
    clock.now += REAP_SECONDS + 1
    with pytest.raises(JobFailed, match="The job of lines 5 to 9 failed 3 times"):
        client.take(0.01)
    client.close()
    assert {key for key in keys(valkey_client) if "task" in key} == set()


def test_an_exception_is_tried_three_times_and_told_by_its_last_line(
    valkey_client: redis.Redis, client: BatchClient, worker: JobWorker, clock: Clock
) -> None:
    client.submit(0, {"n": 100})
    for _ in range(MOST_TRIES):
        worker._step()
    clock.now += REAP_SECONDS + 1
    with pytest.raises(JobFailed, match=r"failed 3 times on the queue score: large\."):
        client.take(0.01)


def test_a_worker_that_still_holds_its_job_keeps_it(
    valkey_client: redis.Redis, client: BatchClient, worker: JobWorker
) -> None:
    client.submit(0, {"n": 1})
    found = worker.queue_class.dequeue_any(
        worker.queues, 1, connection=valkey_client, job_class=worker.job_class, serializer=worker.serializer
    )
    assert found is not None
    execution = worker.prepare_execution(found[0])
    Reaper([queue_of(valkey_client)]).reap()
    assert (queue_of(valkey_client).count, job_ids_in_hand(valkey_client)) == (0, ["task-0"])
    before = valkey_client.zscore("rq:wip:score", execution.composite_key)
    valkey_client.zadd("rq:wip:score", {execution.composite_key: 5})
    worker.maintain_heartbeats(found[0], execution)
    after = valkey_client.zscore("rq:wip:score", execution.composite_key)
    assert before is not None
    assert after is not None
    assert after >= before


def test_a_job_taken_from_the_queue_and_never_begun_is_put_back_after_a_while(
    valkey_client: redis.Redis, client: BatchClient, worker: JobWorker, clock: Clock
) -> None:
    client.submit(0, {"n": 1})
    queue = queue_of(valkey_client)
    valkey_client.lmove(queue.key, queue.intermediate_queue.key, "LEFT", "RIGHT")
    reapers = [Reaper([queue], clock) for _ in range(2)]
    for reaper in reapers:
        reaper.reap()
    assert queue.count == 0
    clock.now += STUCK_SECONDS
    for reaper in reapers:
        reaper.reap()
    assert queue.get_job_ids() == ["task-0"]
    worker._step()
    assert taken(client).result == {"n": 2}


def test_a_batch_done_twice_counts_once(valkey_client: redis.Redis, client: BatchClient, worker: JobWorker) -> None:
    client.submit(0, {"n": 1})
    worker._step()
    valkey_client.rpush(done_key("task"), json.dumps({"batch": 0, "worker": "late", "result": {"n": 2}}))
    client.submit(1, {"n": 5})
    worker._step()
    answers = [client.take() for _ in range(3)]
    assert [answer and answer.batch for answer in answers] == [0, None, 1]
    assert client.repeated == 1


def test_a_job_that_vanished_is_handed_out_again(
    valkey_client: redis.Redis, client: BatchClient, worker: JobWorker, clock: Clock
) -> None:
    client.submit(0, {"n": 1})
    valkey_client.flushall()
    clock.now += REAP_SECONDS + 1
    assert client.take(0.01) is None
    worker._step()
    assert taken(client).result == {"n": 2}


def test_forgetting_a_task_takes_its_waiting_jobs_out_and_leaves_others(
    valkey_client: redis.Redis, client: BatchClient
) -> None:
    other = BatchClient(valkey_client, "score", "other")
    client.submit(0, {"n": 1})
    other.submit(0, {"n": 2})
    valkey_client.rpush(done_key("task"), "{}")
    forget_task(valkey_client, "score", "task")
    assert queue_of(valkey_client).get_job_ids() == ["other-0"]
    assert valkey_client.exists(Job.key_for(job_id("task", 0)), done_key("task")) == 0
    forget_task(valkey_client, "score", "never was")


def test_forgetting_a_task_takes_out_ids_that_a_dead_worker_left_between_queue_and_work(
    valkey_client: redis.Redis, client: BatchClient
) -> None:
    between = queue_of(valkey_client).intermediate_queue.key
    valkey_client.rpush(between, job_id("task", 3), job_id("task-2", 3), job_id("task", 10))
    client.close()
    assert valkey_client.lrange(between, 0, -1) == [job_id("task-2", 3).encode()]


def test_a_task_that_is_forgotten_amid_a_job_leaves_nothing_once_the_job_ends(
    valkey_client: redis.Redis, client: BatchClient
) -> None:
    def handler(payload: dict[str, Any]) -> dict[str, Any]:
        client.close()
        return {}

    worker = JobWorker(valkey_client, {"score": handler})
    for number in range(3):
        client.submit(number, {})
    worker._step()
    assert {key for key in keys(valkey_client) if "task" in key} == set()
    assert queue_of(valkey_client).count == 0


def test_a_batch_over_its_time_ends_though_its_handler_catches_every_exception(valkey_client: redis.Redis) -> None:
    def stubborn(payload: dict[str, Any]) -> dict[str, Any]:
        while True:
            try:
                threading.Event().wait(30)
            except Exception:  # noqa: BLE001 - as rewards may
                log.append("caught")

    log: list[str] = []
    client = BatchClient(valkey_client, "score", "slow", job_seconds=1)
    client.submit(0, {})
    worker = JobWorker(valkey_client, {"score": stubborn})
    worker._step()
    assert (log, worker.batches_finished) == ([], 0)
    assert queue_of(valkey_client).get_job_ids() == ["slow-0"]
