"""`tersely compare`: evaluations of several models, prompt by prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tersely.cli.options import JsonOption


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("compare", help="Paired differences between evaluations, with intervals and corrected tests.")(compare)


def compare(
    files: Annotated[list[Path], typer.Argument(metavar="A.json B.json ...", help="Of tersely evaluate -o.")],
    metrics: Annotated[
        str, typer.Option("--metrics", metavar="A,B", help="Only these: fewer comparisons to correct for.")
    ] = "",
    baselines: Annotated[
        bool, typer.Option("--baselines", help="Also each model against the baselines in its file.")
    ] = False,
    null: Annotated[
        int | None, typer.Option("--null", min=1, metavar="N", help="Simulate N comparisons of A with itself.")
    ] = None,
    report: Annotated[Path | None, typer.Option("--report", metavar="FILE.html", help="And a page of it.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Prints a table, or the whole comparison with --json."""
    from tersely.evaluation.compare import compare as compare_all
    from tersely.evaluation.files import dumps, read_evaluation
    from tersely.evaluation.null import null_rates
    from tersely.evaluation.table import comparison_lines

    evaluations = dict(zip(_names(files), map(read_evaluation, files), strict=True))
    wanted = [name.strip() for name in metrics.split(",") if name.strip()]
    if null is not None:
        if len(files) != 1:
            raise typer.BadParameter("A null is simulated from one evaluation.", param_hint="--null")
        rates = null_rates(next(iter(evaluations.values())), null, metrics=wanted)
        typer.echo(dumps(rates), nl=False)
        return
    if len(files) < 2 and not baselines:
        raise typer.BadParameter("Give two evaluations or more, or one with --baselines.")
    found = compare_all(evaluations, metrics=wanted, baselines=baselines)
    if not found["pairs"]:
        raise typer.BadParameter("The evaluations have none of these figures in common.", param_hint="--metrics")
    if report:
        from tersely.report.evaluation_page import render_comparison
        from tersely.telemetry.atomic import write_atomic

        write_atomic(report, render_comparison(found, evaluations))
    if as_json:
        typer.echo(dumps(found), nl=False)
        return
    for line in comparison_lines(found):
        typer.echo(line)


def _names(files: list[Path]) -> list[str]:
    """File names without their ending, made unique by the folder, else by a number."""
    names = [file.stem for file in files]
    if len(set(names)) < len(names):
        names = [str(file.with_suffix("")) for file in files]
    seen: dict[str, int] = {}
    for index, name in enumerate(names):
        seen[name] = seen.get(name, 0) + 1
        if seen[name] > 1:
            names[index] = f"{name} ({seen[name]})"
    return names
