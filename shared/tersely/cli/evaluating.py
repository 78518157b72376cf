"""The slow parts of `tersely evaluate`: generating with progress shown, and a judge in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tersely.cli.tools import load_tool
from tersely.errors import ServiceFailed

if TYPE_CHECKING:
    from rich.progress import Progress

    from tersely.data.records import Record
    from tersely.evaluation.completed import CompletedSet
    from tersely.evaluation.settings import Settings


@contextmanager
def show_progress() -> Iterator[Progress]:
    """Bars on standard error; nothing where that is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        yield progress


def complete(
    folder: Path,
    records: Sequence[Record],
    settings: Settings,
    samples: int,
    engine: Mapping[str, Any],
    progress: Progress,
    what: str,
) -> CompletedSet:
    """Completions of all records by a model; see `run_complete`."""
    bar = progress.add_task(what, total=len(records))
    found: CompletedSet = load_tool("complete", extra="rollout-torch")(
        folder,
        records,
        settings.targets(records),
        settings.data,
        max_completion_tokens=settings.max_completion_tokens,
        samples=samples,
        temperature=settings.temperature,
        seed=settings.seed,
        on_done=lambda done: progress.update(bar, completed=done),
        **engine,
    )
    return found


def judge_rows(
    rows: Sequence[Mapping[str, Any]], url: str, model: str | None, key_env: str | None
) -> list[dict[str, Any] | None]:
    """The judge's result per row, by `tersely judge-file`: the judge's packages have an environment of their own.

    Raises:
        ServiceFailed: The command failed; its own words are in the message.
    """
    keys = ("id", "completion", "document")
    with tempfile.TemporaryDirectory(prefix="tersely-judge-") as name:
        source, target = Path(name) / "rows.jsonl", Path(name) / "judged.jsonl"
        lines = (json.dumps({key: row[key] for key in keys}, ensure_ascii=False) + "\n" for row in rows)
        source.write_text("".join(lines), encoding="utf-8")
        command = [sys.executable, "-m", "tersely.cli", "judge-file", str(source), "--base-url", url]
        command += ["-o", str(target), *(["--model", model] if model else [])]
        command += ["--api-key-env", key_env] if key_env else []
        # Its progress and complaints go where ours do; only its standard output is kept apart.
        ended = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
        if ended.returncode != 0 or not target.is_file():
            raise ServiceFailed(
                f"tersely judge-file ended with exit code {ended.returncode}; what it said stands above.",
                "Correct what it names, or evaluate without --judge.",
            )
        judged = {}
        for line in target.read_text(encoding="utf-8").splitlines():
            result = json.loads(line)
            judged[str(result["id"])] = result
    return [judged.get(str(row["id"])) for row in rows]
