"""`tersely trainer|rollout|scorer|judge`: one service in this process; `tersely health` asks whether one answers."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from tersely.cli import judge_tools
from tersely.cli.options import InsecureLanOption, SetOption
from tersely.errors import PackageMissing
from tersely.node.options import ServiceOptions

GROUP = "tersely.services"
EXTRAS = {"trainer": "trainer", "rollout": "rollout-torch", "scorer": "scorer", "judge": "judge"}

ServiceEntry = Callable[[ServiceOptions], int]
TrainerOption = Annotated[str | None, typer.Option("--trainer", metavar="HOST:PORT", help="Trainer to join.")]
RecipeOption = Annotated[
    Path | None, typer.Option("--recipe", metavar="FILE", help="Recipe, where no trainer gives it.")
]
LogJsonOption = Annotated[bool, typer.Option("--log-json", help="Log JSON lines.")]
ThreadsOption = Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads.")]


def run_service(role: str, options: ServiceOptions) -> int:
    """Finds the service by its entry point and runs it to its end.

    Raises:
        PackageMissing: The service, or a package it needs, is not installed.
        TerselyError: Whatever the service raises.
    """
    # Before torch is loaded: threads that spin long while they wait starve the rest of the machine, and each other.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    found = [entry for entry in entry_points(group=GROUP) if entry.name == role]
    way_out = f"Install it with: pip install 'tersely[{EXTRAS.get(role, role)}]'"
    if not found:
        raise PackageMissing(f"No installed package provides the service {role}.", way_out)
    try:
        return cast(ServiceEntry, found[0].load())(options)
    except ModuleNotFoundError as error:
        raise PackageMissing(
            f"The {role} needs the Python package {error.name}, which is not installed.", way_out
        ) from None


def with_insecure_lan(overrides: list[str] | None, insecure_lan: bool) -> tuple[str, ...]:
    """Items of `--set`, with what `--insecure-lan` stands for."""
    return (*(overrides or ()), *(("rpc.insecure_lan=true",) if insecure_lan else ()))


def _to_dial(address: str | None, insecure_lan: bool) -> str | None:
    """The trainer's address; in plaintext where that was asked for."""
    if address is None or not insecure_lan:
        return address
    from tersely.rpc.client import in_plaintext

    return in_plaintext(address)


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command("trainer", help="Run the trainer of one run.")(trainer)
    app.command("rollout", help="Run a worker that samples.")(rollout)
    app.command("scorer", help="Run a worker that computes rewards.")(scorer)
    group = typer.Typer(
        help="Run the judge; or, by a command of its own, look whether a judge can be trusted.",
        invoke_without_command=True,
        rich_markup_mode=None,
    )
    group.callback()(judge)
    judge_tools.add_to(group)
    app.add_typer(group, name="judge")
    app.command("health", help="Exit 0 if a gRPC server answers and is serving, 1 if not.")(health)


def trainer(
    recipe: Annotated[Path, typer.Option("--recipe", metavar="FILE", help="Recipe of the run.")],
    run_dir: Annotated[Path, typer.Option("--run-dir", metavar="DIR", help="Directory of the run.")],
    redis_url: Annotated[str | None, typer.Option("--redis-url", metavar="URL", help="Instead of queue.url.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the directory.")] = False,
    overrides: SetOption = None,
    threads: ThreadsOption = None,
    insecure_lan: InsecureLanOption = False,
    log_json: LogJsonOption = False,
) -> None:
    """Runs the trainer."""
    options = ServiceOptions(
        recipe=recipe,
        run_dir=run_dir,
        redis_url=redis_url,
        resume=resume,
        overrides=with_insecure_lan(overrides, insecure_lan),
        threads=threads,
        log_json=log_json,
    )
    raise typer.Exit(run_service("trainer", options))


def rollout(
    address: Annotated[str, typer.Option("--trainer", metavar="HOST:PORT", help="Trainer to join.")],
    engine: Annotated[str | None, typer.Option("--engine", help="Instead of rollout.engine.")] = None,
    threads: ThreadsOption = None,
    insecure_lan: InsecureLanOption = False,
    log_json: LogJsonOption = False,
) -> None:
    """Runs a rollout worker."""
    options = ServiceOptions(trainer=_to_dial(address, insecure_lan), engine=engine, threads=threads, log_json=log_json)
    raise typer.Exit(run_service("rollout", options))


def scorer(
    address: TrainerOption = None,
    recipe: RecipeOption = None,
    redis_url: Annotated[
        str | None,
        typer.Option("--redis-url", metavar="URL", help="Take the jobs of `tersely score` from this server."),
    ] = None,
    overrides: SetOption = None,
    threads: ThreadsOption = None,
    insecure_lan: InsecureLanOption = False,
    log_json: LogJsonOption = False,
) -> None:
    """Runs a scorer."""
    if address is not None and redis_url is not None:
        raise typer.BadParameter(
            "A scorer works in a run (--trainer) or on jobs (--redis-url).", param_hint="--redis-url"
        )
    options = ServiceOptions(
        trainer=_to_dial(address, insecure_lan),
        recipe=recipe,
        redis_url=redis_url,
        overrides=with_insecure_lan(overrides, insecure_lan),
        threads=threads,
        log_json=log_json,
    )
    raise typer.Exit(run_service("scorer", options))


def judge(
    context: typer.Context,
    address: TrainerOption = None,
    recipe: RecipeOption = None,
    redis_url: Annotated[
        str | None,
        typer.Option("--redis-url", metavar="URL", help="Take the jobs of `tersely judge-file` from this server, too."),
    ] = None,
    overrides: SetOption = None,
    insecure_lan: InsecureLanOption = False,
    log_json: LogJsonOption = False,
) -> None:
    """Runs the judge, where no command of its own is called."""
    if context.invoked_subcommand is not None:
        return
    options = ServiceOptions(
        trainer=_to_dial(address, insecure_lan),
        recipe=recipe,
        redis_url=redis_url,
        # In a run, settings of its own would take the place of the run's.
        overrides=with_insecure_lan(overrides, insecure_lan and address is None),
        log_json=log_json,
    )
    raise typer.Exit(run_service("judge", options))


def health(
    address: Annotated[str, typer.Argument(metavar="HOST:PORT", help="Server to ask.")],
    node: Annotated[
        str | None,
        typer.Option("--node", metavar="ROLE", help="Ask this trainer whether it hears from such a node of this host."),
    ] = None,
    timeout_seconds: Annotated[float, typer.Option("--timeout", help="Seconds to wait.")] = 3.0,
) -> None:
    """Asks grpc.health.v1 for the server's own state, or a trainer for the state of a node on this host."""
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    from tersely.identity.folder import has_identity
    from tersely.rpc.client import dial
    from tersely.v1 import run_pb2, run_pb2_grpc

    role = node if node is not None and has_identity(node) else None
    with dial(address, role=role, server="node") as channel:
        try:
            if node is None:
                stub = health_pb2_grpc.HealthStub(channel)
                answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout_seconds)
                healthy = answer.status == health_pb2.HealthCheckResponse.SERVING
            else:
                run = run_pb2_grpc.RunServiceStub(channel)
                status = run.GetStatus(run_pb2.GetStatusRequest(), timeout=timeout_seconds)
                healthy = _is_heard(json.loads(status.status_json), node)
        except grpc.RpcError as error:
            typer.echo(f"{address}: {error.code().name.lower()}", err=True)
            raise typer.Exit(1) from None
    what = (
        ("serving" if healthy else "not serving") if node is None else f"{node} {'heard' if healthy else 'not heard'}"
    )
    typer.echo(f"{address}: {what}", err=not healthy)
    raise typer.Exit(0 if healthy else 1)


def _is_heard(status: Mapping[str, Any], role: str) -> bool:
    """Whether the run's status lists a node of this role on this host; nodes that fall silent drop out of it."""
    return any(node.get("role") == role and node.get("host") == platform.node() for node in status.get("nodes") or ())
