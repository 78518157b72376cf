"""`tersely export`: a policy of a run as a Hugging Face folder with a model card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from tersely.cli.options import JsonOption


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("export", help="A policy of a run as a Hugging Face folder with a model card.")(export)


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Directory of the run.")],
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="Folder to make; an older export is replaced.")],
    checkpoint: Annotated[
        str, typer.Option("--checkpoint", metavar="WHICH", help="last, best, or the step of a checkpoint.")
    ] = "last",
    as_json: JsonOption = False,
) -> None:
    """Writes the folder and prints where it is."""
    from tersely.cli.tools import load_tool
    from tersely.models.provenance import PROVENANCE_FILE
    from tersely.telemetry.logging import configure_logging

    if checkpoint not in ("last", "best") and not checkpoint.isdecimal():
        raise typer.BadParameter(f"{checkpoint!r} is not last, best or a step.", param_hint="--checkpoint")
    if to.exists() and (not to.is_dir() or (any(to.iterdir()) and not (to / PROVENANCE_FILE).exists())):
        raise typer.BadParameter(f"{to} holds other things; they are not overwritten.", param_hint="--to")
    configure_logging("export", level="WARNING")
    found = load_tool("export")(run.resolve(), to.resolve(), checkpoint)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    if not found["finished"]:
        typer.echo(f"the run is not finished: this is step {found['step']} of {found['steps']}", err=True)
    typer.echo(found["path"])
