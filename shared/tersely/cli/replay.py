"""`tersely replay`: trains a run again from its own log, and says whether the same weights come out."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tersely.cli.options import JsonOption
from tersely.errors import ReplayDiffers

if TYPE_CHECKING:
    from collections.abc import Mapping


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("replay", help="Train a run again from its log, without workers, and compare each version.")(replay)


def replay(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory, or a copy; it is only read.")],
    from_step: Annotated[
        int | None,
        typer.Option("--from-step", metavar="N", help="Begin with the newest checkpoint at or before step N."),
    ] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="CPU threads; default: as logged, else bits differ.")
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", metavar="DEVICE", help="auto, cpu, cuda or mps; default: as the recipe.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Replays it; progress goes to stderr.

    Raises:
        ReplayDiffers: A version's hash is not the logged one; the result is printed all the same.
    """
    from tersely.cli.tools import load_tool
    from tersely.telemetry.logging import configure_logging

    if device not in (None, "auto", "cpu", "cuda", "mps"):
        raise typer.BadParameter(f"{device!r} is not auto, cpu, cuda or mps.", param_hint="--device")

    def show(progress: Any) -> None:
        if from_step and progress.step == 0:
            text = (
                f"no checkpoint at or before step {from_step} to begin with: beginning at 0, with the initial weights"
            )
            typer.echo(text, err=True)
        _show(progress)

    # The model is on this machine, or this is not the machine to replay on.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    configure_logging("replay", level="WARNING")
    result = load_tool("replay")(
        run_dir.resolve(), from_step=from_step, threads=threads, device=device, on_progress=show
    )
    typer.echo(json.dumps(result, indent=2) if as_json else "\n".join(lines(result)))
    if result["differing_step"] is not None:
        what = "; ".join(result["environment_differences"])
        raise ReplayDiffers(
            f"The replay differs from the log of {run_dir} from step {result['differing_step']} on"
            f" ({what or 'with the same device, threads and versions'}).",
            "Replay where those are as in the log, without --threads or --device."
            if what
            else "Compare the run with a backup.",
        )


def lines(result: Mapping[str, Any]) -> list[str]:
    """The result as text."""
    logged = result["logged_weights_sha256"]
    same = "as logged" if logged == result["final_weights_sha256"] else f"logged: {logged or 'nothing yet'}"
    back = f", {result['rollbacks']} roll-backs" if result["rollbacks"] else ""
    return [
        f"replayed steps {result['from_step'] + 1}-{result['to_step']}{back} in {result['seconds']:.1f} s"
        if result["steps"]
        else f"nothing to train after step {result['from_step']}",
        f"final weights {result['final_weights_sha256']} ({same})",
    ]


def _show(progress: Any) -> None:
    verdict = {True: "same weights", False: "OTHER WEIGHTS", None: "no version logged"}[progress.same]
    what = "" if progress.to_step is None else f" rolled back to step {progress.to_step}"
    typer.echo(f"step {progress.step}/{progress.of}{what}  {verdict}  {progress.seconds:.2f} s", err=True)
