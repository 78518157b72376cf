"""`tersely score`: a file of rows through however many scorers there are."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import structlog
from redis.exceptions import RedisError

from tersely.config.schema import QueueSection
from tersely.errors import ConfigValue
from tersely.jobs import BatchClient
from tersely.jobs.client import forget_task
from tersely.jobs.drive import drive
from tersely.jobs.folder import WorkFolder
from tersely.jobs.local import LocalWorkers
from tersely.jobs.rows import Batch, check_rows, in_batches, read_rows
from tersely.queue import connect, password_from, redis_errors, without_password
from tersely.queue.connect import address_of, server_words
from tersely.queue.embedded import EmbeddedServer
from tersely.scorer.jobs.prepare import Preparation, check_row, load_tokenizer, read_references
from tersely.scorer.jobs.tally import Tally
from tersely.scorer.jobs.work import QUEUE
from tersely.scorer.registry import check_installed
from tersely.scorer.rows import check_names

MOST_OWN_WORKERS = 8
PASSWORD_ENV = "TERSELY_REDIS_PASSWORD"

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Progress:
    """Told while the work goes on.

    Attributes:
        rows: Rows in the file.
        done: Rows written, those of earlier commands included.
        resumed: Rows that an earlier command had written.
        scorers: Scorers that are there.
    """

    rows: int
    done: int
    resumed: int
    scorers: int


def run_score(
    path: Path,
    output: Path,
    rewards: Sequence[str],
    *,
    options: Mapping[str, Mapping[str, object]] | None = None,
    target_tokens: int | None = None,
    tokenizer: str | None = None,
    against: Path | None = None,
    workers: int | None = None,
    redis_url: str | None = None,
    batch_rows: int = 256,
    stopping: threading.Event | None = None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    on_workers: Callable[[list[int]], None] = lambda pids: None,
) -> dict[str, Any]:
    """Scores a file into another, in input order; see docs/scoring.md.

    Args:
        path: JSON lines to score.
        output: Gets one line per input line; until all are there they lie in `OUTPUT.work`.
        rewards: Names.
        options: Options of rewards, by name.
        target_tokens: Length wanted of rows that don't say.
        tokenizer: Model folder or name whose tokenizer counts the tokens of rows that don't say.
        against: JSON lines with the references, by id.
        workers: Scorers to start here; default: one per core (at most 8) without `redis_url`, else none.
        redis_url: Server whose scorers do the work; default: one of its own on this machine.
        batch_rows: Most rows per job.
        stopping: Ends it early; the same call goes on later.
        on_progress: Called about once a second.
        on_workers: Called with the process ids of the scorers started here.

    Returns:
        The summary that `tersely score --json` prints.

    Raises:
        TerselyError: A line, a reward, the queue or the disk, each in its own class.
    """
    if output.resolve() in {path.resolve(), against and against.resolve()}:
        raise ConfigValue(f"{output} is read and written at once.", "Name another file with -o.")
    check_names(rewards, options or {})
    given = {name: dict(table) for name, table in (options or {}).items()}
    if redis_url is None:
        check_installed(rewards)
    source = check_rows(path, check_row)
    references, reference_file = (None, None) if against is None else read_references(against)
    preparation = Preparation(references, target_tokens, load_tokenizer(tokenizer))
    fingerprint = {
        "input": source.sha256,
        "against": None if reference_file is None else reference_file.sha256,
        "rewards": list(rewards),
        "options": given,
        "target_tokens": target_tokens,
        "tokenizer": tokenizer,
    }
    stopping = stopping or threading.Event()
    tally = Tally(rewards)
    began = time.perf_counter()
    with WorkFolder(output, fingerprint) as folder, ExitStack() as stack:
        for row in folder.written():
            tally.add(row)
        left = source.rows - folder.rows
        complete, by_worker, repeated, restarts = True, {}, 0, 0
        if left:
            count = own_workers(workers, redis_url, left, batch_rows)
            url, password = _server(redis_url, folder, stack)
            client = stack.enter_context(connect(url, password=password))
            jobs = BatchClient(client, QUEUE)
            stack.enter_context(redis_errors(address_of(client)))
            if folder.old_task is not None:
                forget_task(client, QUEUE, folder.old_task)
            folder.begin(jobs.task)
            environment = {} if password is None else {PASSWORD_ENV: password}
            local = stack.enter_context(
                LocalWorkers(
                    ("scorer", "--redis-url", without_password(url), "--log-json"),
                    count,
                    folder.path / "logs",
                    environment=environment,
                )
            )
            on_workers(local.pids)
            # Before the workers stop: what they still have in hand is dropped, not waited for.
            stack.callback(_close, jobs)

            def write(rows: Sequence[dict[str, Any]]) -> None:
                folder.append(rows)
                for row in rows:
                    tally.add(row)

            def tick() -> None:
                local.check()
                on_progress(Progress(source.rows, folder.rows, folder.resumed_rows, jobs.worker_count()))

            def payload(batch: Batch) -> dict[str, Any]:
                return {"rows": preparation.rows(batch), "rewards": list(rewards), "options": given}

            began = time.perf_counter()
            driven = drive(
                jobs,
                in_batches(read_rows(path, folder.rows), batch_rows),
                payload,
                write,
                stopping=stopping,
                tick=tick,
            )
            complete, by_worker, repeated, restarts = driven.complete, driven.by_worker, jobs.repeated, local.restarts
        seconds = time.perf_counter() - began
        if complete:
            folder.finish()
        scored = folder.rows - folder.resumed_rows
        return {
            "output": str(output if complete else folder.path),
            "complete": complete,
            "rows": source.rows,
            "rows_written": folder.rows,
            "rows_resumed": folder.resumed_rows,
            "rows_discarded": folder.discarded_rows,
            "rows_without_reference": preparation.without_reference,
            "rewards": tally.figures(),
            "seconds": round(seconds, 3),
            "pairs_per_second": round(scored / seconds, 1) if scored and seconds > 0 else None,
            "scorers": by_worker,
            "scorers_restarted": restarts,
            "batches_repeated": repeated,
        }


def _close(jobs: BatchClient) -> None:
    try:
        jobs.close()
    except RedisError as error:
        # What is left there expires in an hour.
        log.warning("task_not_removed", task=jobs.task, error=server_words(error))


def own_workers(wanted: int | None, redis_url: str | None, rows: int, batch_rows: int) -> int:
    """Scorers to start on this machine.

    Raises:
        ConfigValue: None are wanted, and there is no server where others could be.
    """
    if wanted is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return 0 if redis_url is not None else max(1, min(cores, MOST_OWN_WORKERS, -(-rows // batch_rows)))
    if wanted == 0 and redis_url is None:
        raise ConfigValue("There is nobody to score: --workers 0 without --redis.", "Give one of them.")
    return wanted


def _server(redis_url: str | None, folder: WorkFolder, stack: ExitStack) -> tuple[str, str | None]:
    """URL without password, and the password."""
    if redis_url is None:
        return stack.enter_context(EmbeddedServer(folder.path / "redis")).url, None
    inside = urlsplit(redis_url).password
    password = password_from(QueueSection(), os.environ)
    return without_password(redis_url), password if inside is None else unquote(inside)
