"""`tersely bench weights`: what deltas between the checkpoints of a run cost."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from tersely.cli.options import JsonOption


def register(group: typer.Typer) -> None:
    """Adds the command to the group `bench`."""
    group.command("weights", help="Size and time of weight deltas between checkpoints of a run.")(weights)


def weights(
    checkpoints: Annotated[
        Path, typer.Option("--checkpoints", metavar="DIR", help="Run directory, or its checkpoints.")
    ],
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Threads (default: half of the cores).")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measures and prints."""
    from tersely.weights.measure import measure

    found = measure(checkpoints, threads, progress=lambda line: typer.echo(line, err=True))
    typer.echo(json.dumps(found, indent=2) if as_json else "\n".join(lines(found)))


def lines(found: Mapping[str, Any]) -> list[str]:
    """The figures as text."""
    text = []
    for title, figures in found.items():
        pair = figures["pairs"][0]
        text.append(
            f"{title}, {len(figures['pairs'])} pairs of checkpoints, {pair['to_step'] - pair['from_step']} steps apart"
        )
        text.append(
            f"full {figures['full_bytes'] / 1e6:.1f} MB, delta {figures['delta_bytes'] / 1e6:.2f} MB: "
            f"{figures['ratio']} times smaller; {figures['over_entropy']} of the entropy of the changes"
        )
        text.append(f"encode {figures['encode_seconds']} s, decode and check {figures['decode_seconds']} s")
        if figures["merged_over_sum"] is not None:
            text.append(f"one delta over {figures['merged_pairs']} pairs: {figures['merged_over_sum']} of their sum")
        text.append("bit-exact" if figures["bit_exact"] else "NOT BIT-EXACT")
    return text
