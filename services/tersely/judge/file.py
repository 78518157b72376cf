"""`tersely judge-file`: a file of summaries through one endpoint, or through the judges at a job queue."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

from tersely.config.judge import JudgeSection
from tersely.errors import ConfigValue, DataRecord, JudgeEndpoint, JudgeNotConfigured
from tersely.jobs.rows import check_rows, read_rows
from tersely.judge.failures import CallFailed
from tersely.judge.judgement import Judgement, abstained
from tersely.judge.rubrics import AXES, rubrics_version

OnProgress = Callable[[int, int], None]


def run_judge_file(
    path: Path,
    output: Path,
    settings: JudgeSection,
    *,
    redis_url: str | None = None,
    stopping: threading.Event | None = None,
    on_progress: OnProgress = lambda done, rows: None,
) -> dict[str, Any]:
    """Judges a file into another, in input order; see docs/judge.md.

    Args:
        path: JSON lines {"id", "completion", "document"}.
        output: Gets {"id", "axes", "composite", "passed", "judge", "rubrics", "errors"?} per line, all at once at the
            end; until then they lie in `OUTPUT.part`.
        settings: The endpoint and how to ask it; with `redis_url` the judges there have their own.
        redis_url: Server whose judges do the work.
        stopping: Ends it early, without an output; answers are kept in the cache.
        on_progress: Called with rows done and rows, after each row.

    Returns:
        The summary that `tersely judge-file --json` prints.

    Raises:
        JudgeNotConfigured: There is neither an endpoint nor a server.
        JudgeEndpoint: The endpoint refuses every call, or has been down from the start.
        TerselyError: A line, the cache, a package or the queue, each in its own class.
    """
    if output.resolve() == path.resolve():
        raise ConfigValue(f"{output} is read and written at once.", "Name another file with -o.")
    if redis_url is None and settings.endpoint is None:
        raise JudgeNotConfigured(
            "There is no endpoint to judge with.", "Give --base-url URL and --model NAME, or --redis URL with judges."
        )
    source = check_rows(path, check_row)
    stopping = stopping or threading.Event()
    began = time.perf_counter()
    tally = _Tally()
    part = output.with_name(output.name + ".part")
    calls: dict[str, Any] | None = None
    try:
        with part.open("w", encoding="utf-8") as file:

            def write(line: dict[str, Any]) -> None:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
                tally.add(line)
                on_progress(tally.rows, source.rows)

            if redis_url is None:
                calls = _by_endpoint(path, settings, stopping, write)
            else:
                from tersely.judge.jobs import judge_by_queue

                judge_by_queue(path, redis_url, stopping, write)
            file.flush()
            os.fsync(file.fileno())
        complete = tally.rows == source.rows and not stopping.is_set()
        if complete:
            part.replace(output)
    finally:
        part.unlink(missing_ok=True)
    return {
        "kind": "judged",
        "output": str(output),
        "complete": complete,
        "rows": source.rows,
        **tally.figures(),
        "stopped_by_budget": bool(calls and calls["refused_by_budget"]),
        "seconds": round(time.perf_counter() - began, 3),
        "calls": calls,
    }


def check_row(row: dict[str, Any], where: str) -> None:
    """Refuses a row that can't be judged or told apart.

    Raises:
        DataRecord: The completion is missing or no text, the document is no text, or the id is neither text nor number.
    """
    identity = row.get("id")
    if isinstance(identity, bool) or not isinstance(identity, str | int):
        raise DataRecord(f"{where}: the field 'id' is neither text nor a whole number.", "Use a unique text as id.")
    for field, needed in (("completion", True), ("document", False)):
        if field not in row and needed:
            raise DataRecord(f"{where}: the row has no field {field!r}.", "Add it: the summary that is to be judged.")
        if row.get(field) is not None and not isinstance(row[field], str):
            raise DataRecord(f"{where}: the field {field!r} is not text.", "Make it a JSON string.")
    if row["completion"] is None:
        raise DataRecord(f"{where}: the field 'completion' is null.", "Remove the row or give it a text.")


def without_document(judge: str) -> Judgement:
    """The judgement of a row without a document: there is nothing to hold its summary against."""
    return abstained(AXES, "no_document", "the row has no document", judge=judge, rubrics=rubrics_version())


def _by_endpoint(
    path: Path, settings: JudgeSection, stopping: threading.Event, write: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    from tersely.judge.judging import Judge, Pair

    judge = Judge(settings, patient=True)
    try:
        name = judge.endpoint.model()
        rows = _rows_until(path, stopping)
        pending: list[Any] = []

        def pairs() -> Iterator[Pair | None]:
            for row in rows:
                pending.append(row["id"])
                yield Pair(row["document"], row["completion"]) if row.get("document") else None

        for judgement in judge.judge_all(pairs(), stopping):
            _raise_if_hopeless(settings, judge.fatal, judge.answered, judge.circuit.opened)
            if stopping.is_set():
                break
            write({"id": pending.pop(0), **(judgement or without_document(name)).as_fields()})
        return judge.counts()
    finally:
        judge.close()


def _rows_until(path: Path, stopping: threading.Event) -> Iterator[dict[str, Any]]:
    for _, row in read_rows(path):
        if stopping.is_set():
            return
        yield row


def _raise_if_hopeless(settings: JudgeSection, fatal: CallFailed | None, answered: int, opened: int) -> None:
    if fatal is not None:
        raise JudgeEndpoint(
            f"The endpoint {settings.endpoint} refuses: {fatal.detail}.",
            "Check the key (--api-key-env), the model (--model) and the URL (mostly ending in /v1).",
        )
    if opened and not answered:
        raise JudgeEndpoint(
            f"The endpoint {settings.endpoint} has answered no call.",
            "Check that it runs and its URL (mostly ending in /v1): curl URL/models",
        )


class _Tally:
    """What the summary says of the rows."""

    def __init__(self) -> None:
        self.rows = 0
        self._abstained = 0
        self._passed = 0
        self._composites: list[float] = []
        self._scores: dict[str, list[float]] = {axis: [] for axis in AXES}
        self._judge = ""
        self._rubrics = ""

    def add(self, line: dict[str, Any]) -> None:
        """Counts a line."""
        self.rows += 1
        self._judge, self._rubrics = str(line.get("judge", "")), str(line.get("rubrics", ""))
        self._abstained += line["composite"] is None
        self._passed += bool(line["passed"])
        if line["composite"] is not None:
            self._composites.append(line["composite"])
        for axis, found in line["axes"].items():
            if found["score"] is not None:
                self._scores.setdefault(axis, []).append(found["score"])

    def figures(self) -> dict[str, Any]:
        """Means over what has a score, and how much has none."""
        return {
            "judge": self._judge,
            "rubrics": self._rubrics,
            "rows_abstained": self._abstained,
            "passed": self._passed,
            "composite": fmean(self._composites) if self._composites else None,
            "axes": {
                axis: {"mean": fmean(found) if found else None, "n": len(found), "abstained": self.rows - len(found)}
                for axis, found in self._scores.items()
            },
        }
