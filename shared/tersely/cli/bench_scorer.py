"""`tersely bench scorer`: pairs per second, beside rouge-score."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from tersely.cli.options import JsonOption


def register(group: typer.Typer) -> None:
    """Adds the command to the group `bench`."""
    group.command("scorer", help="Pairs per second of the rewards on one core, ROUGE-L beside rouge-score.")(scorer)


def scorer(
    turns: Annotated[int, typer.Option("--turns", min=1, help="Repetitions.")] = 5,
    groups: Annotated[int, typer.Option("--groups", min=1, help="Groups of eight per turn.")] = 250,
    as_json: JsonOption = False,
) -> None:
    """Measures and prints."""
    from tersely.cli.tools import load_tool
    from tersely.telemetry.logging import configure_logging

    configure_logging("bench", level="WARNING")
    found = load_tool("bench_scorer", extra="scorer")(
        turns=turns, groups=groups, progress=lambda line: typer.echo(line, err=True)
    )
    typer.echo(json.dumps(found, indent=2) if as_json else "\n".join(lines(found)))


def lines(found: Mapping[str, Any]) -> list[str]:
    """The figures as text."""
    details = found["details"]
    return [
        f"rouge_l: {found['pairs_per_second']} pairs/s on one core,"
        f" {found['ratio_over_rouge_score']} times rouge-score's {details['rouge_score_pairs_per_second']}",
        f"with its words known: {details['pairs_per_second_known_words']} pairs/s",
        f"largest difference of a value: {details['largest_difference']:.1e}",
        *(f"{name}: {rate} pairs/s" for name, rate in details["other_rewards_pairs_per_second"].items()),
    ]
