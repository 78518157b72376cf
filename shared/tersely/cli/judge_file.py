"""`tersely judge-file`: what a language model says of a file of summaries."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from tersely.cli.options import JsonOption, SetOption


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("judge-file", help="Have a language model judge a file of summaries by four rubrics.")(judge_file)


def judge_file(
    file: Annotated[Path, typer.Argument(metavar="FILE.jsonl", help="Lines {id, completion, document}.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="OUT.jsonl", help="Gets a line per line.")],
    base_url: Annotated[
        str | None,
        typer.Option("--base-url", metavar="URL", help="OpenAI-compatible endpoint, such as http://127.0.0.1:8000/v1."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="Model there (default: the only one it serves).")
    ] = None,
    api_key_env: Annotated[
        str | None, typer.Option("--api-key-env", metavar="NAME", help="Environment variable with the key.")
    ] = None,
    rounds: Annotated[int | None, typer.Option("--rounds", min=1, max=16, help="Times each axis is asked for.")] = None,
    budget_tokens: Annotated[
        int | None, typer.Option("--budget-tokens", min=1, help="Most tokens to use; then it stops, exit 91.")
    ] = None,
    cache: Annotated[Path | None, typer.Option("--cache", metavar="DIR", help="Folder of the answers kept.")] = None,
    recipe: Annotated[
        Path | None, typer.Option("--recipe", metavar="FILE", help="Recipe whose table [judge] is used.")
    ] = None,
    overrides: SetOption = None,
    redis_url: Annotated[
        str | None, typer.Option("--redis", metavar="URL", help="Let the judges at this server do it.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Writes one line per input line, in input order; what was answered is kept, so the same command goes on."""
    from tersely.cli.tools import load_tool
    from tersely.config.load import load_recipe
    from tersely.node.drain import DrainSignal
    from tersely.telemetry.logging import configure_logging

    configure_logging("judge", level="WARNING")
    given = {
        "endpoint": base_url,
        "model": model,
        "api_key_env": api_key_env,
        "rounds": rounds,
        "budget_tokens": budget_tokens,
        "cache": None if cache is None else str(cache),
    }
    words = [f"judge.{name}={json.dumps(value)}" for name, value in given.items() if value is not None]
    settings = load_recipe(recipe, (*(overrides or ()), *words)).recipe.judge
    run = load_tool("judge_file", extra="judge")
    with DrainSignal() as drain:
        summary: dict[str, Any] = run(
            file,
            output,
            settings,
            redis_url=redis_url,
            stopping=drain.event,
            on_progress=_show if sys.stderr.isatty() else lambda done, rows: None,
        )
    typer.echo(json.dumps(summary, indent=2, ensure_ascii=False) if as_json else in_words(summary))
    if not summary["complete"]:
        raise typer.Exit(130)
    if summary["stopped_by_budget"]:
        from tersely.errors import JudgeBudget

        raise JudgeBudget(
            f"The judge's budget is used up: {summary['rows_abstained']} of {summary['rows']} rows lack a score.",
            "Raise --budget-tokens and give the same command again: what was answered is kept.",
        )


def in_words(summary: dict[str, Any]) -> str:
    """The summary as lines for people."""
    lines = [
        f"{summary['rows']} rows judged by {summary['judge']} in {summary['seconds']} s,"
        f" {summary['rows_abstained']} with an axis left out: {summary['output']}"
    ]
    for name, axis in summary["axes"].items():
        mean = "-" if axis["mean"] is None else f"{axis['mean']:.3f}"
        lines.append(f"  {name:<13} {mean}  ({axis['n']} scores, {axis['abstained']} abstained)")
    calls = summary["calls"]
    if calls:
        tokens = calls["tokens"]
        lines.append(
            f"  calls {calls['calls']}, from the cache {calls['cache_hits']}, tokens {tokens['read']} read and"
            f" {tokens['written']} written"
        )
        if calls["failures"]:
            lines.append("  failed calls: " + ", ".join(f"{name} {n}" for name, n in sorted(calls["failures"].items())))
        if calls["left_out"]:
            lines.append(f"  the endpoint does without: {', '.join(calls['left_out'])}")
    return "\n".join(lines)


def _show(done: int, rows: int) -> None:
    typer.echo(f"\r{done} of {rows}", nl=done == rows, err=True)
