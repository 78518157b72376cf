"""`tersely score`: rewards for a file of summaries, without a trainer, a run or a policy."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from tersely.cli.options import JsonOption

PLAIN_SECONDS = 10.0


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("score", help="Score a file of summaries with rewards.")(score)


def score(
    file: Annotated[Path, typer.Argument(metavar="FILE.jsonl", help="Lines {id, completion, reference?, document?}.")],
    rewards: Annotated[str, typer.Option("--rewards", metavar="A,B", help="Rewards by name.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="OUT.jsonl", help="Gets a line per line.")],
    target_tokens: Annotated[int | None, typer.Option("--target-tokens", min=1, help="Length wanted.")] = None,
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", metavar="DIR", help="Model whose tokenizer counts the tokens.")
    ] = None,
    against: Annotated[
        Path | None, typer.Option("--against", metavar="REF.jsonl", help="References {id, reference} by id.")
    ] = None,
    options: Annotated[
        list[str] | None,
        typer.Option("--option", metavar="NAME.KEY=VALUE", help="Option of a reward, as in a recipe. Repeatable."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=0, max=64, help="Scorers to start here (default: one per core).")
    ] = None,
    redis_url: Annotated[
        str | None, typer.Option("--redis", metavar="URL", help="Let the scorers at this server do it.")
    ] = None,
    batch_rows: Annotated[int, typer.Option("--batch-rows", min=1, max=4096, help="Most rows per job.")] = 256,
    as_json: JsonOption = False,
) -> None:
    """Writes one line per input line, in input order; interrupted, the same command goes on."""
    from tersely.cli.tools import load_tool
    from tersely.node.drain import DrainSignal
    from tersely.telemetry.logging import configure_logging

    configure_logging("score", level="WARNING")
    run = load_tool("score", extra="scorer")
    names = [name.strip() for name in rewards.split(",") if name.strip()]
    with DrainSignal() as drain, shown() as on_progress:
        summary: dict[str, Any] = run(
            file,
            output,
            names,
            options=parse_options(options or []),
            target_tokens=target_tokens,
            tokenizer=tokenizer,
            against=against,
            workers=workers,
            redis_url=redis_url,
            batch_rows=batch_rows,
            stopping=drain.event,
            on_progress=on_progress,
        )
    if as_json:
        typer.echo(json.dumps(summary, indent=2, ensure_ascii=False))
    else:
        typer.echo(in_words(summary))
    if not summary["complete"]:
        raise typer.Exit(130)


def parse_options(items: list[str]) -> dict[str, dict[str, object]]:
    """Options of rewards from `NAME.OPTION=VALUE`; a value is read as TOML, and as text where it is none.

    Raises:
        ConfigValue: An item has another shape.
    """
    import tomllib

    from tersely.errors import ConfigValue

    options: dict[str, dict[str, object]] = {}
    for item in items:
        path, equals, text = item.partition("=")
        reward, dot, option = path.strip().partition(".")
        if not (equals and dot and reward and option):
            raise ConfigValue(f"The option {item!r} can't be read.", "Write it like rouge_l.measure=recall.")
        try:
            value: object = tomllib.loads(f"value = {text}")["value"]
        except (ValueError, RecursionError):
            value = text
        options.setdefault(reward, {})[option] = value
    return options


@contextmanager
def shown() -> Iterator[Callable[[Any], None]]:
    """Progress on standard error: a bar on a terminal, else a line every ten seconds."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(file=sys.stderr)
    if not console.is_terminal:
        yield _in_lines()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, refresh_per_second=4) as bar:
        task = bar.add_task("starting", total=None)
        yield lambda now: bar.update(task, description=_who(now), completed=now.done, total=now.rows)


def _in_lines() -> Callable[[Any], None]:
    said = time.monotonic()

    def show(now: Any) -> None:
        nonlocal said
        if time.monotonic() - said >= PLAIN_SECONDS:
            said = time.monotonic()
            typer.echo(f"{now.done} of {now.rows} rows, {_who(now)}", err=True)

    return show


def _who(now: Any) -> str:
    return "no scorer yet" if not now.scorers else f"{now.scorers} scorer{'s' if now.scorers > 1 else ''}"


def in_words(summary: dict[str, Any]) -> str:
    """The summary as text."""
    lines = []
    if summary["rows_discarded"]:
        lines.append(f"{summary['rows_discarded']} rows of an unfinished other task were thrown away")
    if summary["rows_resumed"]:
        lines.append(f"went on after row {summary['rows_resumed']}")
    if summary["rows_without_reference"]:
        lines.append(f"{summary['rows_without_reference']} rows have no reference in the --against file")
    width = max(len(name) for name in summary["rewards"])
    for name, figures in summary["rewards"].items():
        mean = "no value" if figures["mean"] is None else f"mean {figures['mean']:.4f}"
        absent = f", {figures['absent']} without ({'; '.join(figures['reasons'])})" if figures["absent"] else ""
        lines.append(f"{name:<{width}}  {mean}{absent}")
    speed = summary["pairs_per_second"]
    rate = "" if speed is None else f", {speed:g} pairs/s"
    count = len(summary["scorers"])
    scorers = f" by {count} scorer{'s' if count > 1 else ''}" if count else ""
    lines.append(f"{summary['rows_written']} of {summary['rows']} rows in {summary['seconds']:.1f} s{rate}{scorers}")
    if summary["complete"]:
        lines.append(f"written to {summary['output']}")
    else:
        lines.append("stopped: give the same command to go on")
    return "\n".join(lines)
