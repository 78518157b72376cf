"""`tersely token create|list|revoke`: what lets another machine join."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from tersely.cli.ca import DirOption, when
from tersely.cli.options import JsonOption

RoleOption = Annotated[str, typer.Option("--role", help="rollout, scorer, judge or client.")]


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    group = typer.Typer(
        help="Tokens that let machines join: one use each, 15 minutes.", no_args_is_help=True, rich_markup_mode=None
    )
    group.command("create", help="Make a token and print it: a secret until it is used.")(create)
    group.command("list", help="What became of the tokens of the last week.")(list_)
    group.command("revoke", help="Make a token useless, and put out the node that joined with it.")(revoke)
    app.add_typer(group, name="token")


def create(role: RoleOption = "rollout", folder: DirOption = None) -> None:
    """Prints the token alone on standard output, and how to use it on standard error."""
    from tersely.identity.authority import Authority
    from tersely.identity.node import authority_folder
    from tersely.identity.tokens import TokenBook

    authority = Authority.open(authority_folder(folder))
    token = TokenBook(authority.folder).create(authority.fingerprint, role)
    typer.echo(token.text)
    typer.echo(
        f"token {token.token_id} for one {role}, for 15 minutes; there: tersely join HOST --token -   (and paste it)",
        err=True,
    )


def list_(folder: DirOption = None, as_json: JsonOption = False) -> None:
    """Prints them; no token can be made from it."""
    from tersely.identity.authority import Authority
    from tersely.identity.node import authority_folder
    from tersely.identity.tokens import TokenBook

    authority = Authority.open(authority_folder(folder))
    entries = sorted(TokenBook(authority.folder).entries().items(), key=lambda item: item[1]["created"])
    rows = [
        {
            "token": number,
            "role": entry["role"],
            "state": entry["state"],
            "created": when(entry["created"]),
            "expires": when(entry["expires"]),
            "node": entry["node"] or None,
        }
        for number, entry in entries
    ]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        typer.echo(f"{row['token']}  {row['role']:<8} {row['state']:<8} {row['created']}  {row['node'] or ''}".rstrip())
    if not rows:
        typer.echo("no tokens", err=True)


def revoke(
    name: Annotated[str, typer.Argument(metavar="TOKEN|NODE", help="Id of a token, or name of a node.")],
    folder: DirOption = None,
) -> None:
    """Takes effect at the node's next call, also on connections that are open."""
    from tersely.identity.authority import Authority
    from tersely.identity.node import authority_folder
    from tersely.identity.tokens import TokenBook

    authority = Authority.open(authority_folder(folder))
    tokens = TokenBook(authority.folder)
    node = name
    if name in tokens.entries():
        node = tokens.revoke(name)["node"]
        if not node or node not in authority.nodes():  # or the join broke off after the token was used up
            typer.echo(f"token {name} is of no use any more; nobody had joined with it")
            return
    first = authority.revoke(node)
    typer.echo(f"{node} is put out" if first else f"{node} was put out before")
