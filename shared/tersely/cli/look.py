"""`tersely samples|runs|report`: what a run wrote, what runs there are, its page again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from tersely.cli.options import JsonOption, RunDirOption


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command("samples", help="Completions of a run: the last, the worst or the best by length and reward.")(samples)
    app.command("runs", help="Runs in a folder.")(runs)
    app.command("report", help="Write report.html again.")(report)


def samples(
    run_dir: RunDirOption,
    last: Annotated[int | None, typer.Option("--last", min=1, help="The newest N (default 5).")] = None,
    worst: Annotated[int | None, typer.Option("--worst", min=1, help="The N with the lowest reward.")] = None,
    best: Annotated[int | None, typer.Option("--best", min=1, help="The N with the highest reward.")] = None,
    evaluation: Annotated[
        str | None,
        typer.Option("--evaluation", metavar="NAME", help="Held-out ones: before, after, step-000020 ..."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Prints completions of training, or of one evaluation."""
    from tersely.supervise.run_dir import RunDir
    from tersely.telemetry.samples import read_samples
    from tersely.view import figures
    from tersely.view.plain import one_line

    if sum(option is not None for option in (last, worst, best)) > 1:
        raise typer.BadParameter("Give one of --last, --worst, --best.")
    folder = RunDir(run_dir.resolve())
    folder.check_exists()
    rows = [row for row in read_samples(folder.samples) if row.get("evaluation") == evaluation]
    if worst is not None or best is not None:
        rows = [row for row in rows if total_reward(row) is not None]
        rows.sort(key=lambda row: total_reward(row) or 0.0, reverse=best is not None)
        rows = rows[: worst or best]
    else:
        rows = rows[-(last or 5) :]
    for row in rows:
        if as_json:
            typer.echo(json.dumps(row, ensure_ascii=False))
            continue
        where = f"step {row.get('step')}"
        if row.get("outcome") == "evaluation":
            where = f"evaluation {row.get('evaluation')}, {row.get('mode')}"
        head = f"{where}  {row.get('prompt_id')}  {row.get('tokens')} tokens of {row.get('target_tokens')}"
        typer.echo(f"{head}  {figures.rewards(row)}\n  {one_line(str(row.get('text', '')))}")


def total_reward(row: Mapping[str, Any]) -> float | None:
    """Sum of a sample's rewards; None if any could not be computed."""
    values = list((row.get("rewards") or {}).values())
    return float(sum(values)) if values and all(isinstance(value, int | float) for value in values) else None


def runs(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder with run directories.")] = Path("runs"),
    as_json: JsonOption = False,
) -> None:
    """Lists runs, newest last."""
    from tersely.errors import RunDirMissing
    from tersely.supervise.run_dir import RunDir
    from tersely.view.status import read_status

    found = []
    for path in sorted(folder.iterdir(), key=lambda p: p.stat().st_mtime) if folder.is_dir() else ():
        if not path.is_dir():
            continue
        try:
            status = read_status(RunDir(path.resolve()))
        except RunDirMissing:
            continue
        found.append({key: status.get(key) for key in ("run_dir", "run_id", "state", "step", "steps", "seconds")})
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    for row in found:
        typer.echo(f"{row['run_dir']}  {row['state']}  step {row['step'] or 0}/{row['steps'] or '-'}")


def report(run_dir: RunDirOption) -> None:
    """Renders the page from report.json."""
    from tersely.errors import RunDirMissing
    from tersely.report.html import write_report
    from tersely.supervise.run_dir import RunDir

    folder = RunDir(run_dir.resolve())
    if not folder.report.exists():
        raise RunDirMissing(
            f"There is no report.json in {folder.path}.", "A run writes it at its end; go on with --resume."
        )
    typer.echo(str(write_report(folder)))
