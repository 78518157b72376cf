"""`tersely up`: a whole run on this machine."""

from __future__ import annotations

import shlex
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tersely.cli.options import InsecureLanOption, SetOption

if TYPE_CHECKING:
    from collections.abc import Callable

    from tersely.config import Recipe
    from tersely.supervise.local_run import QueueServer, RunView
    from tersely.supervise.run_dir import RunDir


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("up", help="Train: start the queue server and all services here, and watch over them.")(up)


def up(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="Recipe, a TOML file.")],
    overrides: SetOption = None,
    run_dir: Annotated[
        Path | None, typer.Option("--run-dir", metavar="DIR", help="Default: runs/<recipe>-<time>.")
    ] = None,
    plain: Annotated[bool, typer.Option("--plain", help="One line per step instead of the live view.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --run-dir.")] = False,
    insecure_lan: InsecureLanOption = False,
) -> None:
    """Runs it to the end."""
    from tersely.cli.config import check_addresses, check_plugins
    from tersely.cli.services import with_insecure_lan
    from tersely.config import load_recipe
    from tersely.supervise.local_run import LocalRun, UpPlan
    from tersely.supervise.run_dir import RunDir, read_json

    items = with_insecure_lan(overrides, insecure_lan)
    loaded = load_recipe(recipe, items).recipe
    check_plugins(loaded)
    check_addresses(loaded)
    if resume and run_dir is None:
        raise typer.BadParameter("--resume needs --run-dir: the directory of the run to go on with.")
    path = (run_dir or Path("runs") / f"{recipe.stem}-{time.strftime('%Y%m%d-%H%M%S')}").resolve()
    folder = RunDir(path)
    folder.check_for_start(resume=resume)
    make_server = _queue(loaded)
    view = _view(folder, loaded, live=sys.stdout.isatty() and not plain)
    plan = UpPlan(
        recipe_path=recipe.resolve(),
        recipe=loaded,
        overrides=items,
        run_dir=path,
        resume=resume,
        environment=_password_for_services(loaded),
    )
    outcome = LocalRun(plan, view, make_server).run()
    if not outcome.finished:
        status = read_json(folder.status) or {}
        step = status.get("step")
        where = "" if step is None else f" at step {step} of {loaded.run.steps}"
        again = ["tersely", "up", str(recipe), "--run-dir", str(path)]
        again += ["--resume"] if folder.holds_run() else []
        again += [word for item in items for word in ("--set", item)]
        how = "its trainer was stopped" if status.get("stopped_by") is None else status["stopped_by"]
        how = signal.Signals(outcome.signal_number).name if outcome.signal_number else how
        line = f"stopped ({how}){where}; go on with: {shlex.join(again)}"
        typer.echo(line, err=True)
        raise typer.Exit(outcome.exit_code)
    _report(folder)


def _view(run_dir: RunDir, recipe: Recipe, *, live: bool) -> RunView:
    if live:
        from rich.console import Console

        from tersely.view.live import LiveView

        return LiveView(run_dir, recipe, Console())
    from tersely.view.plain import PlainView

    return PlainView(run_dir, sys.stdout, recipe.run.steps)


def _queue(recipe: Recipe) -> Callable[[Path], QueueServer] | None:
    """The maker of a server; None after a look at the one that the recipe names.

    Raises:
        PlaintextRefused, RedisUnreachable, RedisAuth, RedisTooOld, RedisTls.
        RedisServerMissing, IdentityMissing: Other machines are to reach it, and it could not be made safe for that.
    """
    import os

    from tersely.rpc.address import Address

    queue = recipe.queue
    if queue.url is not None:
        from tersely.queue.connect import open_queue, refuse_plaintext

        refuse_plaintext(queue.url, allowed=recipe.rpc.insecure_lan)
        open_queue(queue, queue.url, os.environ).close()
        return None
    if Address(queue.host, 0).loopback:
        from tersely.queue.embedded import EmbeddedServer

        return EmbeddedServer
    from tersely.queue.server import TlsServer, find_server
    from tersely.queue.tls import queue_tls

    binary, tls = find_server(queue.server), queue_tls("trainer")
    return lambda folder: TlsServer(folder, queue.host, queue.port, binary, tls)


def _password_for_services(recipe: Recipe) -> dict[str, str]:
    """A password written into queue.url, as the variable that the services read: it is not shown or sent on."""
    import os
    from urllib.parse import unquote, urlsplit

    if os.environ.get(recipe.queue.password_env):
        return {}
    password = urlsplit(recipe.queue.url or "").password
    return {recipe.queue.password_env: unquote(password)} if password else {}


def _report(run_dir: RunDir) -> None:
    from tersely.report.html import write_report
    from tersely.report.table import held_out_lines
    from tersely.supervise.run_dir import read_json

    report = read_json(run_dir.report) or {}
    write_report(run_dir)
    for line in held_out_lines(report):
        typer.echo(line, err=True)
    print(f"report: {run_dir.path}", flush=True)  # noqa: T201  # plain: the last line is read by programs
