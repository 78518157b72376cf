"""`tersely bench rollout`: how fast the torch engine samples here, beside its peers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from tersely.cli.options import JsonOption


def register(group: typer.Typer) -> None:
    """Adds the command to the group `bench`."""
    group.command("rollout", help="The torch engine beside transformers' generate and vLLM, in turns.")(rollout)


def rollout(
    model: Annotated[str, typer.Option("--model", metavar="NAME", help="Folder, hub id or name.")] = "smollm2-135m",
    turns: Annotated[int | None, typer.Option("--turns", min=1, help="Repetitions (default 3).")] = None,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads (default: all cores).")] = None,
    lookup: Annotated[bool, typer.Option("--lookup/--no-lookup", help="Also measure decoding by look-up.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Measures and prints the rates."""
    from tersely.cli.tools import load_tool
    from tersely.telemetry.logging import configure_logging

    configure_logging("bench", level="WARNING")
    found = load_tool("bench_rollout", extra="rollout-torch")(
        model=model, turns=turns, threads=threads, lookup=lookup, progress=lambda line: typer.echo(line, err=True)
    )
    typer.echo(json.dumps(found, indent=2) if as_json else "\n".join(lines(found)))


def lines(found: Mapping[str, Any]) -> list[str]:
    """The figures as text."""
    details = found["details"]
    text = [
        f"{details['model']}, {details['sequences']} sequences, prompt {details['prompt_tokens']},"
        f" {details['completion_tokens']} tokens, {details['threads']} threads"
    ]
    for name, rate in found["tokens_per_second"].items():
        why = details["not_measured"].get(name, "")
        text.append(f"{name}: not measured, {why}" if rate is None else f"{name}: {rate} tokens/s")
    text.append(f"torch over generate: {found['ratio_over_generate']}")
    text.append(f"prompt tokens computed per prompt token: {found['prefill_tokens_per_prompt_token']}")
    if found["lookup_speedup"] is not None:
        for kind, figures in details["lookup"].items():
            speedups = ", ".join(f"{factor} drafting {n}" for n, factor in figures["speedup"].items())
            text.append(f"look-up, {kind} summaries: {speedups} (times as fast as without)")
    return text
