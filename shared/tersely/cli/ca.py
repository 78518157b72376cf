"""`tersely ca init|show|serve`: the certificate authority of this machine, and the certificates on it."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from tersely.cli.options import JsonOption

DirOption = Annotated[
    Path | None,
    typer.Option("--dir", metavar="DIR", help="Folder of identities; default $TERSELY_IDENTITY, else in ~/.config."),
]


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    group = typer.Typer(
        help="The authority that signs the certificates of nodes.", no_args_is_help=True, rich_markup_mode=None
    )
    group.command("init", help="Make an authority, and certificates for the services of this machine.")(init)
    group.command("show", help="What this machine holds, and who has joined.")(show)
    group.command("serve", help="Let nodes join without a trainer, e.g. for a scorer of its own.")(serve)
    app.add_typer(group, name="ca")


def init(
    folder: DirOption = None,
    days: Annotated[float, typer.Option("--days", min=0.0001, help="How long nodes' certificates are valid.")] = 30.0,
) -> None:
    """Makes them; the last line is the fingerprint."""
    import platform

    from tersely.identity.authority import Authority
    from tersely.identity.folder import ROLES
    from tersely.identity.node import authority_folder, issue_locally

    authority = Authority.create(authority_folder(folder), datetime.timedelta(days=days))
    for role in ROLES:
        issue_locally(role, authority, platform.node(), folder)
    typer.echo(f"authority and certificates for {', '.join(ROLES)} in {authority.folder.parent}", err=True)
    typer.echo(f"SHA-256 {authority.fingerprint.hex()}")


def show(folder: DirOption = None, as_json: JsonOption = False) -> None:
    """Prints it; nothing of it is secret."""
    from tersely.identity.authority import Authority
    from tersely.identity.folder import ROLES, has_identity
    from tersely.identity.node import authority_folder, load_identity

    home = authority_folder(folder)
    found: dict[str, Any] = {"folder": str(home.parent), "authority": None, "identities": [], "nodes": []}
    for role in ROLES:
        if has_identity(role, folder):
            own = load_identity(role, folder).certificate
            found["identities"].append({"role": role, "name": own.name, "valid_until": own.not_after.isoformat()})
    if (home / "ca.key").exists():
        authority = Authority.open(home)
        found["authority"] = {"sha256": authority.fingerprint.hex()}
        found["nodes"] = [_node(name, node) for name, node in sorted(authority.nodes().items())]
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    typer.echo(f"folder     {found['folder']}")
    typer.echo(f"authority  {'none' if found['authority'] is None else 'SHA-256 ' + found['authority']['sha256']}")
    for own in found["identities"]:
        typer.echo(f"own        {own['role']:<8} {own['name']}  until {own['valid_until'][:16]} UTC")
    for node in found["nodes"]:
        state = f"revoked {node['revoked'][:16]}" if node["revoked"] else f"until {(node['valid_until'] or '')[:16]}"
        typer.echo(f"node       {node['role']:<8} {node['name']}  {state} UTC")


def _node(name: str, node: dict[str, Any]) -> dict[str, Any]:
    ends = node["certificates"].values()
    return {
        "name": name,
        "role": node["role"],
        "token": node["token"] or None,
        "valid_until": when(max(ends)) if ends else None,
        "revoked": when(node["revoked"]) if node["revoked"] is not None else None,
    }


def when(seconds: float) -> str:
    """A Unix time as text, in UTC."""
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="seconds")


def serve(
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "0.0.0.0",
    join_port: Annotated[int, typer.Option("--join-port", min=0, max=65535, help="Port at which nodes join.")] = 7071,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port at which they renew; 0: any.")] = 7072,
) -> None:
    """Runs until SIGTERM or Ctrl-C; a trainer that listens beyond loopback does the same beside its work."""
    from tersely.identity.authority import Authority
    from tersely.identity.gate import Gate
    from tersely.identity.node import authority_folder
    from tersely.node.drain import DrainSignal
    from tersely.rpc.credentials import mutual_tls
    from tersely.rpc.server import GrpcServer
    from tersely.telemetry.logging import configure_logging

    configure_logging("ca")
    Authority.open(authority_folder())
    with DrainSignal() as drain:
        server = GrpcServer(host, port, security=mutual_tls("trainer"))
        gate = Gate.beside(server, host, join_port)
        assert gate is not None
        with server:
            try:
                typer.echo(f"join at {gate.open(server.port).removeprefix('tls://')}", err=True)
                drain.wait()
            finally:
                gate.close()
