"""`tersely ablate`: a matrix of runs with different rewards and seeds, and one report about them."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tersely.cli.options import JsonOption

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tersely.ablation.plan import Matrix
    from tersely.ablation.run import CellOutcome


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("ablate", help="Train with different rewards, schedules and seeds at one budget, and compare.")(ablate)


def ablate(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What to run, a TOML file; see docs/ablation.md.")],
    folder: Annotated[
        Path, typer.Option("--dir", metavar="DIR", help="Takes runs and report; what is there is gone on with.")
    ],
    parallel: Annotated[int, typer.Option("--parallel", min=1, max=64, help="Runs at a time.")] = 1,
    plan_only: Annotated[bool, typer.Option("--plan", help="List the runs and start nothing.")] = False,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Run nothing; report on what is measured so far.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Runs what is missing and writes the report."""
    from tersely.ablation.plan import load_matrix
    from tersely.ablation.processes import Commands, Stopped, held_alone
    from tersely.ablation.run import measured_so_far, run_matrix
    from tersely.cli.config import check_addresses, check_plugins
    from tersely.errors import AblationIncomplete

    matrix = load_matrix(file)
    for cell in matrix.cells:
        check_plugins(cell.recipe)
        check_addresses(cell.recipe)
    if plan_only:
        for cell in matrix.cells:
            words = ["tersely", "up", str(matrix.recipe_path), *(w for item in cell.overrides for w in ("--set", item))]
            typer.echo(f"{cell.name}: {shlex.join(words)}")
        return
    folder = folder.resolve()
    if report_only:
        _finish(matrix, measured_so_far(matrix, folder), folder, as_json=as_json)
        return
    folder.mkdir(parents=True, exist_ok=True)
    with held_alone(folder):
        try:
            with Commands() as commands:
                outcomes = run_matrix(
                    matrix, folder, commands, parallel=parallel, say=lambda line: typer.echo(line, err=True)
                )
        except Stopped as stopped:
            again = shlex.join(["tersely", "ablate", str(file), "--dir", str(folder)])
            typer.echo(f"stopped ({stopped}); go on with: {again}", err=True)
            raise typer.Exit(128 + stopped.number) from None
        _finish(matrix, outcomes, folder, as_json=as_json)
    failed = [outcome for outcome in outcomes if outcome.failure]
    if failed:
        raise AblationIncomplete(
            f"{len(failed)} of {len(outcomes)} runs failed; {failed[0].cell.name}: {failed[0].failure}",
            "The report is about the others. Mend the cause, then start the same command again: the rest is kept.",
        )


def _finish(matrix: Matrix, outcomes: Sequence[CellOutcome], folder: Path, *, as_json: bool) -> None:
    from tersely.ablation.write import write_reports

    report = write_reports(matrix, outcomes, folder)
    if as_json:
        typer.echo(json.dumps(report, ensure_ascii=False))
    else:
        typer.echo(f"report: {folder / 'report.html'}")
