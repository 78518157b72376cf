"""Nothing that stands in Redis is imported, called or sent anywhere by a worker."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from rq import Callback
from rq.job import Job
from rq.queue import Queue
from rq.serializers import JSONSerializer
from rq.webhook import Webhook

from tersely.jobs import JobWorker
from tersely.jobs.keys import open_key

CALLED: list[str] = []


def note(*args: Any, **kwargs: Any) -> None:
    CALLED.append("note")


@pytest.fixture
def worked(valkey_client: redis.Redis) -> Callable[[Queue], JobWorker]:
    """Runs a worker until the queue is empty and nothing is at work."""

    def work(queue: Queue) -> JobWorker:
        stopping = threading.Event()

        def handler(payload: dict[str, Any]) -> dict[str, Any]:
            CALLED.append("handler")
            return {}

        worker = JobWorker(valkey_client, {"score": handler})
        step = worker._step

        def once_more() -> None:
            step()
            if not queue.count and not queue.started_job_registry.get_job_count(cleanup=False):
                stopping.set()

        worker._step = once_more  # type: ignore[method-assign]
        worker.run(stopping)
        return worker

    CALLED.clear()
    return work


@pytest.fixture
def queue(valkey_client: redis.Redis) -> Queue:
    return Queue("score", valkey_client, serializer=JSONSerializer)


def failure(job: Job) -> str:
    latest = job.latest_result()
    assert latest is not None
    return str(latest.exc_string).strip().splitlines()[-1]


def test_a_function_that_is_not_in_the_table_is_not_called(
    queue: Queue, worked: Callable[[Queue], JobWorker], tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    job = queue.enqueue("os.system", f"touch {mark}")
    worked(queue)
    assert not mark.exists()
    assert "'os.system' is no handler of this worker" in failure(job)


@pytest.mark.parametrize(
    "extra",
    [
        {"on_success": Callback(note)},
        {"on_failure": Callback(note)},
        {"on_stopped": Callback(note)},
        {"webhooks": [Webhook("http://127.0.0.1:9/", "failed")]},
    ],
    ids=["success", "failure", "stopped", "webhook"],
)
def test_a_job_with_a_callback_or_webhook_is_refused_before_it_runs(
    valkey_client: redis.Redis, queue: Queue, worked: Callable[[Queue], JobWorker], extra: dict[str, Any]
) -> None:
    valkey_client.sadd(open_key("t"), "t-0")
    job = queue.enqueue("score", "t", 0, {}, **extra)
    worked(queue)
    assert CALLED == []
    assert "JobRefused: the job carries a" in failure(job)


def test_data_that_is_no_json_fails_and_the_next_job_runs(
    valkey_client: redis.Redis, queue: Queue, worked: Callable[[Queue], JobWorker]
) -> None:
    bad = queue.enqueue("score", "t", 0, {})
    # What RQ would run with its pickle serializer.
    valkey_client.hset(bad.key, "data", b"cposix\nsystem\n(S'true'\ntR.")
    valkey_client.sadd(open_key("t"), "t-1")
    queue.enqueue("score", "t", 1, {})
    worker = worked(queue)
    assert CALLED == ["handler"]
    assert worker.batches_finished == 1


def test_a_job_of_a_task_that_is_gone_is_dropped_unseen(
    valkey_client: redis.Redis, queue: Queue, worked: Callable[[Queue], JobWorker]
) -> None:
    queue.enqueue("score", "gone", 0, {})
    worker = worked(queue)
    assert (CALLED, worker.batches_finished) == ([], 0)
    assert valkey_client.keys("tj:*") == []
