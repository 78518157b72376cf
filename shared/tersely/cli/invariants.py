"""`tersely invariants`: whether what a run has written down can be true."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tersely.cli.options import JsonOption

if TYPE_CHECKING:
    from tersely.invariants import Report

_MARKS = {"holds": "ok", "broken": "BROKEN", "not_recorded": "not recorded by this run"}
_SHOWN = 20


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("invariants", help="Check a run's event log, log, checkpoints and samples against each other.")(
        invariants
    )


def invariants(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="Directory of the run, or a copy of one.")],
    as_json: JsonOption = False,
) -> None:
    """Prints each invariant with what was checked, and each breach; ends with an error where there is one."""
    from tersely.errors import InvariantBroken
    from tersely.invariants import check_run

    report = check_run(run_dir)
    typer.echo(json.dumps(report.to_json(), indent=2) if as_json else "\n".join(lines(report)))
    if report.breaches:
        raise InvariantBroken(
            f"{report.breaches} breaches of {', '.join(report.broken)} in {run_dir}.",
            "Keep a copy of the directory and report it; `tersely replay` shows which version is still right.",
        )


def lines(report: Report) -> Iterator[str]:
    """The findings as text."""
    yield f"run {report.run_id or '-'}: {report.state}"
    for finding in report.findings:
        yield f"{finding.name}: {_MARKS[finding.state]}  ({finding.checked} {finding.unit})  {finding.what}"
        for note in finding.notes:
            yield f"    {note}"
        for breach in finding.breaches[:_SHOWN]:
            yield f"  ! {breach.where}  {breach.meaning}"
        if len(finding.breaches) > _SHOWN:
            yield f"  ! and {len(finding.breaches) - _SHOWN} more (--json has them all)"
