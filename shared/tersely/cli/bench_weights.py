"""`tersely bench weights`: what deltas between versions of a run cost, and how long their swap holds sampling up."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from tersely.cli.options import JsonOption


def register(group: typer.Typer) -> None:
    """Adds the command to the group `bench`."""
    group.command("weights", help="Size and time of weight deltas between versions of a run, and the swap's pause.")(
        weights
    )


def weights(
    checkpoints: Annotated[
        list[Path] | None,
        typer.Option(
            "--checkpoints",
            metavar="DIR",
            help="Run directory, its checkpoints, or what --keep kept; repeatable. None: short runs of its own.",
        ),
    ] = None,
    model: Annotated[str, typer.Option("--model", metavar="NAME", help="Model of its own runs.")] = "smollm2-135m",
    learning_rate: Annotated[
        list[float] | None, typer.Option("--learning-rate", help="Of its own runs; repeatable (default 1e-6 and 1e-5).")
    ] = None,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Steps of its own runs; each makes a version.")] = 10,
    keep: Annotated[
        Path | None, typer.Option("--keep", metavar="DIR", help="Keep the versions of its own runs here.")
    ] = None,
    swaps: Annotated[int, typer.Option("--swaps", min=0, help="Swaps to time; 0: none.")] = 40,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Threads of the coder (default: half of the cores).")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measures and prints."""
    from tersely.cli.tools import load_tool
    from tersely.telemetry.logging import configure_logging

    configure_logging("bench", level="WARNING")
    found = load_tool("bench_weights", extra="rollout-torch")(
        checkpoints=checkpoints or [],
        model=model,
        learning_rates=learning_rate or [1e-6, 1e-5],
        steps=steps,
        keep=keep,
        swaps=swaps,
        threads=threads,
        progress=lambda line: typer.echo(line, err=True),
    )
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
        if figures["swap_pause_p95_ms"] is not None:
            swap = figures["swap"]
            text.append(
                f"pause at a swap, p95 of {swap['count']}: {figures['swap_pause_p95_ms']} ms"
                + (f"; with groups running {swap['inflight_p95_ms']} ms" if swap["inflight_p95_ms"] else "")
            )
        text.append("bit-exact" if figures["bit_exact"] else "NOT BIT-EXACT")
    return text
