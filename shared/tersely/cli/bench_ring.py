"""`tersely bench ring`: how many groups the ring carries, and how it grows with workers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from tersely.cli.options import JsonOption


def register(group: typer.Typer) -> None:
    """Adds the command to the group `bench`."""
    group.command("ring", help="Groups per second through the whole ring, and with 1, 8 and 32 workers.")(ring)


def ring(
    seconds: Annotated[float, typer.Option("--seconds", min=1.0, help="Length of each measurement.")] = 20.0,
    workers: Annotated[
        str, typer.Option("--workers", metavar="N,N,...", help="Worker processes whose engines take some time.")
    ] = "1,8,32",
    scorers: Annotated[int, typer.Option("--scorers", min=1, help="Scorer processes.")] = 1,
    keep: Annotated[
        Path | None, typer.Option("--keep", metavar="DIR", help="Keep logs and run directories in a new folder.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measures and prints."""
    from tersely.cli.tools import load_tool
    from tersely.errors import ConfigValue
    from tersely.telemetry.logging import configure_logging

    configure_logging("bench", level="WARNING")
    try:
        numbers = sorted({int(number) for number in workers.split(",") if number.strip()})
    except ValueError:
        numbers = [0]
    if any(number < 1 for number in numbers):
        raise ConfigValue(f"--workers {workers!r} is no list of numbers of at least 1.", "Write it like 1,8,32.")
    found = load_tool("bench_ring")(
        seconds=seconds,
        workers=numbers,
        scorers=scorers,
        keep=keep,
        progress=lambda line: typer.echo(line, err=True),
    )
    typer.echo(json.dumps(found, indent=2) if as_json else "\n".join(lines(found)))


def lines(found: Mapping[str, Any]) -> list[str]:
    """The figures as text."""
    instant, latency = found["details"]["instant"], found["details"]["latency"]
    text = [
        f"engines that take no time, {instant['workers']} workers: {found['groups_per_second']} groups/s",
        "CPU per group: " + ", ".join(f"{role} {ms} ms" for role, ms in instant["cpu_ms_per_group"].items()),
        "a group on its own, beside generating and scoring: "
        + ", ".join(f"{hop} {ms} ms" for hop, ms in instant["lone_group_ms"].items()),
    ]
    for row in latency["rows"]:
        text.append(
            f"{row['workers']} workers at {latency['step_seconds']} s per {latency['step_tokens']} tokens: "
            f"{row['groups_per_second']} groups/s, {row['of_linear']} of linear; engines busy {row['engines_busy']}"
        )
    return text
