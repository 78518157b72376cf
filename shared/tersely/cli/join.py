"""`tersely join`: this machine gets a certificate for a token."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tersely.cli.ca import DirOption

if TYPE_CHECKING:
    from tersely.rpc.address import Address


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("join", help="Get a certificate for this machine, with a token of the trainer's.")(join)


def join(
    host: Annotated[str, typer.Argument(metavar="HOST[:PORT]", help="Trainer's machine; default port 7071.")],
    token: Annotated[
        str, typer.Option("--token", metavar="T", help="The token; - reads it from standard input, @FILE from a file.")
    ],
    folder: DirOption = None,
    replace: Annotated[bool, typer.Option("--replace", help="Take the place of an identity for that role.")] = False,
) -> None:
    """Joins; from then on `tersely rollout --trainer HOST:PORT` and its like use TLS beyond loopback."""
    from tersely.identity.enroll import enroll
    from tersely.identity.tokens import JoinToken

    identity = enroll(_address(host), JoinToken.parse(_read(token)), replace=replace, folder=folder)
    # A client is a program of the user's own: no process of ours is there to renew it.
    later = "join again before that" if identity.role == "client" else "it is renewed while a service runs"
    typer.echo(f"joined as {identity.name} until {identity.certificate.not_after:%Y-%m-%d}; {later}")
    if identity.address and identity.role != "client":
        typer.echo(f"next: tersely {identity.role} --trainer {identity.address}", err=True)


def _read(given: str) -> str:
    """The token: other users of this machine see what stands in a command line."""
    from tersely.errors import TokenRefused

    if given == "-":
        if sys.stdin.isatty():
            import getpass

            return getpass.getpass("token: ")
        return sys.stdin.readline()
    if given.startswith("@"):
        try:
            return Path(given[1:]).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise TokenRefused(
                f"The file {given[1:]} can't be read: {error}.", "Name the file that holds it."
            ) from None
    return given


def _address(text: str) -> Address:
    from tersely.identity.enroll import DEFAULT_PORT
    from tersely.rpc.address import parse_address

    bare = text.removeprefix("tls://")
    closed = bare.endswith("]") or (bare.count(":") > 1 and not bare.startswith("["))
    if ":" not in bare or closed:
        bare = f"[{bare.strip('[]')}]:{DEFAULT_PORT}" if closed else f"{bare}:{DEFAULT_PORT}"
    return parse_address(bare)
