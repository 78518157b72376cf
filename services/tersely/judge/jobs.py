"""`judge` jobs: a file through the judges at a job queue, and what a judge does with a batch of it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from tersely.config.schema import QueueSection
from tersely.errors import ConfigValue
from tersely.jobs import BatchClient
from tersely.jobs.drive import drive
from tersely.jobs.rows import Batch, in_batches, read_rows
from tersely.judge.file import check_row, without_document
from tersely.queue import connect, password_from, without_password

if TYPE_CHECKING:
    from tersely.judge.judging import Judge

QUEUE = "judge"
BATCH_ROWS = 4
JOB_SECONDS = 900
FIELDS = ("id", "document", "completion")


class JudgeHandler:
    """Answers {"rows": [{"id", "document", "completion"}]} with {"rows": [...]} as `tersely judge-file` writes them.

    Args:
        judge: The judge.
    """

    def __init__(self, judge: Judge) -> None:
        self._judge = judge

    def __call__(self, payload: dict[str, Any]) -> dict[str, Any]:
        """Judges the rows of a job.

        Raises:
            ConfigValue: The job is malformed, or the endpoint serves several models and none is set.
            JudgeEndpoint, DataRecord, JudgeCache.
        """
        from tersely.judge.judging import Pair

        rows = payload.get("rows")
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise ConfigValue("A judge job is malformed: it has no rows.", "Use the same version everywhere.")
        for number, row in enumerate(rows, 1):
            check_row(row, f"row {number} of the job")
        name = self._judge.endpoint.model()
        pairs = [Pair(row["document"], row["completion"]) if row.get("document") else None for row in rows]
        found = self._judge.judge_all(pairs)
        return {
            "rows": [
                {"id": row["id"], **(judgement or without_document(name)).as_fields()}
                for row, judgement in zip(rows, found, strict=True)
            ]
        }


def judge_by_queue(
    path: Path, redis_url: str, stopping: threading.Event, write: Callable[[dict[str, Any]], None]
) -> None:
    """Hands a checked file to the judges at a server and writes their lines in order.

    Raises:
        NoWorkers, JobFailed: Nobody is there, or a batch failed as often as it may.
        TerselyError: What a judge refused a batch with.
    """
    inside = urlsplit(redis_url).password
    password = password_from(QueueSection(), os.environ) if inside is None else unquote(inside)

    def payload(batch: Batch) -> dict[str, Any]:
        return {"rows": [{name: row[name] for name in FIELDS if row.get(name) is not None} for row in batch.rows]}

    def write_rows(rows: Any) -> None:
        for row in rows:
            write(row)

    with connect(without_password(redis_url), password=password) as client:
        jobs = BatchClient(client, QUEUE, job_seconds=JOB_SECONDS)
        try:
            drive(jobs, in_batches(read_rows(path), BATCH_ROWS), payload, write_rows, stopping=stopping)
        finally:
            jobs.close()
