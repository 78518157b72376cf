"""`tersely queue serve|login`: a queue server with TLS for jobs from other machines, and who may use it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DirOption = Annotated[Path, typer.Option("--dir", metavar="DIR", help="Folder of the server: data, users, password.")]


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    group = typer.Typer(
        help="A queue server with TLS for `tersely score` and `tersely judge-file` over the network.",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    group.command("serve", help="Start a server with TLS found on this machine, and watch over it.")(serve)
    group.command("login", help="Give a machine a user of the server, for jobs alone.")(login)
    app.add_typer(group, name="queue")


def serve(
    folder: DirOption,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "0.0.0.0",
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port to listen on.")] = 6379,
    program: Annotated[
        str | None, typer.Option("--server", metavar="PATH", help="Program; default: the first found with TLS.")
    ] = None,
) -> None:
    """Runs until SIGTERM or Ctrl-C; a server that dies is started again."""
    from tersely.node.drain import DrainSignal
    from tersely.queue.server import TlsServer, find_server
    from tersely.queue.tls import queue_tls

    binary, tls = find_server(program), queue_tls("trainer")
    with DrainSignal() as drain, TlsServer(folder, host, port, binary, tls) as server:
        write_address(folder, server.url)
        typer.echo(f"{binary.name} listens at {server.url}; users: tersely queue login NAME --dir {folder}", err=True)
        while not drain.wait(1.0):
            if not server.alive:
                typer.echo("the server died and is started again", err=True)
                server.start()


def login(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the machine: letters, digits, dots, dashes.")],
    folder: DirOption,
    role: Annotated[str, typer.Option("--role", help="client hands out jobs; scorer, judge: work on them.")] = "client",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Gets the password; only you can read it.")
    ] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Take the user away instead.")] = False,
) -> None:
    """Writes the variables that the machine needs into a file; prints the URL to use there."""
    from tersely.errors import ConfigValue
    from tersely.identity.folder import read_private, write_private
    from tersely.queue.acl import add_node, remove_node
    from tersely.queue.connect import connect, seen_from
    from tersely.queue.server import ADMIN
    from tersely.queue.tls import queue_tls

    if output is None and not remove:
        raise typer.BadParameter("The password goes into a file: name it.", param_hint="--output")
    url = read_address(folder)
    password = read_private(folder / "password").decode().strip()
    with connect(seen_from(url, "127.0.0.1"), username=ADMIN, password=password, tls=queue_tls("trainer")) as client:
        if output is None or remove:
            typer.echo(f"{remove_node(client, name)} users of {name} removed", err=True)
            return
        try:
            made = add_node(client, None, name, role)
        except ValueError as error:
            raise ConfigValue(f"{error}.", "Roles: client, scorer, judge; names like mini2 or lab-mac.") from None
    write_private(output, f"export TERSELY_REDIS_PASSWORD={made.password}\n".encode())
    host, _, port = url.removeprefix("rediss://").rpartition(":")
    shown = "HOST" if host in ("0.0.0.0", "[::]") else host
    typer.echo(f"rediss://{made.username}@{shown}:{port}?authority=own")


def write_address(folder: Path, url: str) -> None:
    """Leaves word of where the server of a folder listens."""
    (folder / "address").write_text(f"{url}\n", encoding="utf-8")


def read_address(folder: Path) -> str:
    """Where the server of a folder listens.

    Raises:
        RedisUnreachable: It was never started.
    """
    from tersely.errors import RedisUnreachable

    try:
        return (folder / "address").read_text(encoding="utf-8").strip()
    except OSError:
        raise RedisUnreachable(
            f"No queue server was started in {folder}.", f"Start it: tersely queue serve --dir {folder}"
        ) from None
