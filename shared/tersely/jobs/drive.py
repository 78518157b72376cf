"""Drives one file through a job queue: a bounded window of batches out, results in input order back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tersely.errors import NoWorkers, TerselyError, concrete_errors
from tersely.jobs.client import BatchClient, BatchResult
from tersely.jobs.rows import Batch

WINDOW = 32
"""Batches that are out or wait for their turn to be written: what of the file lies in Redis and in memory."""
PATIENCE_SECONDS = 60.0

Write = Callable[[Sequence[dict[str, Any]]], None]


@dataclass(slots=True)
class Driven:
    """How it went.

    Attributes:
        batches: Batches written.
        by_worker: Batches per worker's name.
        complete: False if it was told to stop before the end.
    """

    batches: int = 0
    by_worker: dict[str, int] = field(default_factory=dict)
    complete: bool = False


def drive(
    client: BatchClient,
    batches: Iterable[Batch],
    payload: Callable[[Batch], dict[str, Any]],
    write: Write,
    *,
    stopping: threading.Event,
    tick: Callable[[], None] = lambda: None,
    window: int = WINDOW,
    patience_seconds: float = PATIENCE_SECONDS,
    clock: Callable[[], float] = time.monotonic,
) -> Driven:
    """Works the batches off; the caller closes the client.

    Args:
        client: The task's client.
        batches: Numbered 0, 1, ...
        payload: What the workers get for a batch; they must answer {"rows": [...]}, one per row.
        write: Called with the rows of each batch, in order.
        stopping: Ends it early: what was answered by then and is next in order has been written.
        tick: Called about once a second and after each result.
        window: See `WINDOW`.
        patience_seconds: How long there may be no worker.
        clock: Monotonic seconds.

    Raises:
        NoWorkers: There was none for that long.
        JobFailed: A batch failed as often as it may; its lines are named.
        TerselyError: What a worker refused a batch with, and what `write` and `tick` raise.
    """
    driven = Driven()
    source = iter(batches)
    out: dict[int, Batch] = {}
    waiting: dict[int, BatchResult] = {}
    exhausted = False
    seen_worker = clock()
    while not stopping.is_set():
        while not exhausted and len(out) < window:
            batch = next(source, None)
            if batch is None:
                exhausted = True
                break
            out[batch.number] = batch
            client.submit(batch.number, payload(batch), f"lines {batch.first_line} to {batch.last_line}")
        if not out:
            driven.complete = True
            return driven
        result = client.take()
        tick()
        if result is None:
            if client.worker_count():
                seen_worker = clock()
            elif clock() - seen_worker > patience_seconds:
                raise NoWorkers(
                    f"No worker has been there for {clock() - seen_worker:.0f} s: nobody takes the batches.",
                    "Start one on that server, like `tersely scorer --redis-url URL`, or use --workers.",
                )
            continue
        seen_worker = clock()
        driven.by_worker[result.worker] = driven.by_worker.get(result.worker, 0) + 1
        waiting[result.batch] = result
        while driven.batches in waiting:
            write(_rows(waiting.pop(driven.batches), out.pop(driven.batches)))
            driven.batches += 1
    return driven


def _rows(result: BatchResult, batch: Batch) -> list[dict[str, Any]]:
    if result.error is not None:
        raise raised_by_worker(result.error)
    rows = (result.result or {}).get("rows")
    if not isinstance(rows, list) or len(rows) != len(batch.rows):
        raise TypeError(f"the worker {result.worker} did not answer with {len(batch.rows)} rows")
    return rows


def raised_by_worker(error: dict[str, str]) -> TerselyError:
    """An error as the worker raised it, by its kind."""
    classes = {cls.kind: cls for cls in concrete_errors()}
    return classes.get(error["kind"], TerselyError)(error["message"], error["way_out"])
