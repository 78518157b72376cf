"""`tersely bench link`: how long new weights take to a worker over a slow line, against the line's limit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from tersely.cli.options import JsonOption


def register(group: typer.Typer) -> None:
    """Adds the command to the group `bench`."""
    group.command("link", help="From publishing weights to serving them, over a line held to a rate.")(link)


def link(
    versions: Annotated[
        Path, typer.Option("--versions", metavar="DIR", help="Two or more versions of a run: see bench weights --keep.")
    ],
    mbit: Annotated[
        list[float] | None, typer.Option("--mbit", help="Rate of the line, Mbit/s; repeatable (default 100 and 1000).")
    ] = None,
    workers: Annotated[
        list[int] | None, typer.Option("--workers", help="Workers at once; repeatable (default 1 and 8).")
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            "--model", metavar="DIR", help="Model folder: a single worker then puts the weights in an engine."
        ),
    ] = None,
    delay_ms: Annotated[
        float, typer.Option("--delay-ms", min=0.0, help="Delay of the line in each direction, ms.")
    ] = 0.0,
    full: Annotated[bool, typer.Option("--full/--no-full", help="Also whole copies, with as many workers.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Measures and prints."""
    from tersely.cli.tools import load_tool
    from tersely.telemetry.logging import configure_logging

    configure_logging("bench", level="WARNING")
    found = load_tool("bench_link", extra="rollout-torch")(
        versions=versions,
        rates=mbit or [100.0, 1000.0],
        workers=workers or [1, 8],
        model=model,
        full=full,
        delay_seconds=delay_ms / 1000,
        progress=lambda line: typer.echo(line, err=True),
    )
    typer.echo(json.dumps(found, indent=2) if as_json else "\n".join(lines(found)))


def lines(found: Mapping[str, Any]) -> list[str]:
    """The figures as text."""
    text = [f"{found['title']}: full {found['full_bytes'] / 1e6:.1f} MB, delta {found['delta_bytes'] / 1e6:.2f} MB"]
    for row in found["rows"]:
        text.append(
            f"{row['mbit']:g} Mbit/s, {row['workers']} worker(s), {row['coding']}: all serve after"
            f" {row['seconds']:.2f} s; the line alone needs {row['line_seconds']:.2f} s"
        )
    return text
