"""`tersely bench learner`: how fast the learner and the whole step are here, beside a peer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from tersely.cli import bench_link, bench_ring, bench_rollout, bench_scorer, bench_weights
from tersely.cli.options import JsonOption


def register(app: typer.Typer) -> None:
    """Adds the group."""
    group = typer.Typer(help="Measure on this machine.", no_args_is_help=True, rich_markup_mode=None)
    group.callback()(lambda: None)
    group.command("learner", help="Shared against padded forward, and the whole step against TRL, in turns.")(learner)
    bench_rollout.register(group)
    bench_weights.register(group)
    bench_link.register(group)
    bench_ring.register(group)
    bench_scorer.register(group)
    app.add_typer(group, name="bench")


def learner(
    quick: Annotated[bool, typer.Option("--quick", help="A few minutes: two shapes, without TRL.")] = False,
    model: Annotated[str, typer.Option("--model", metavar="NAME", help="Folder, hub id or name.")] = "smollm2-135m",
    turns: Annotated[int | None, typer.Option("--turns", min=1, help="Repetitions (default 3).")] = None,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads (default: all cores).")] = None,
    as_json: JsonOption = False,
) -> None:
    """Measures and prints the ratios."""
    from tersely.cli.tools import load_tool
    from tersely.telemetry.logging import configure_logging

    configure_logging("bench", level="INFO")
    found = load_tool("bench_learner")(
        quick=quick, model=model, turns=turns, threads=threads, progress=lambda line: typer.echo(line, err=True)
    )
    typer.echo(json.dumps(found, indent=2) if as_json else "\n".join(lines(found)))


def lines(found: Mapping[str, Any]) -> list[str]:
    """The figures as text."""
    details = found["details"]
    text = [f"{details['model']} on {details['machine']['processor']}, {details['threads']} threads"]
    for name, ratio in found["shared_over_padded"].items():
        seconds = details["learner"][name]["seconds"]["shared"]
        text.append(f"{name}: shared {ratio} times as fast as padded ({min(seconds):.2f} s forward and backward)")
    text.append(f"relative difference of the gradients: {found['gradient_difference']:.1e}")
    per_second = details["whole_step"]["completions_per_second"]
    text.append(f"whole step: {per_second['ours']} completions/s")
    if found["over_trl"] is not None:
        text.append(f"TRL: {per_second['trl']} completions/s; ours {found['over_trl']} times as many")
        text.append(f"peak memory over TRL's: {found['peak_memory_over_trl']}")
    return text
