"""`tersely quarantine list|show|replay|drop`: groups that were set aside, and what to do with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tersely.cli.options import JsonOption

if TYPE_CHECKING:
    from tersely.queue.set_aside import SetAside

RunArgument = Annotated[Path | None, typer.Argument(metavar="RUN_DIR", help="Directory of the run.")]
GroupArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="RUN_DIR GROUP",
        help="Directory of the run, unless --redis is given; id of the group, or its beginning.",
    ),
]
RedisOption = Annotated[
    str | None, typer.Option("--redis", metavar="URL", help="Queue server, in place of RUN_DIR; without a password.")
]
RunOption = Annotated[str | None, typer.Option("--run", metavar="ID", help="With --redis: id of the run.")]
PasswordOption = Annotated[
    str | None, typer.Option("--password-env", metavar="NAME", help="Environment variable with the server's password.")
]


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    group = typer.Typer(
        help="Groups that failed too often and were set aside.", no_args_is_help=True, rich_markup_mode=None
    )
    group.command("list", help="Groups set aside, with their errors and what was decided on them.")(list_)
    group.command("show", help="One of them, with its prompt and its whole error.")(show)
    group.command("replay", help="Ask the trainer to try a group's prompt again, once, as a new issue.")(replay)
    group.command("drop", help="Ask the trainer to drop a group for good, with a reason.")(drop)
    app.add_typer(group, name="quarantine")


def list_(
    run_dir: RunArgument = None,
    redis: RedisOption = None,
    run: RunOption = None,
    password_env: PasswordOption = None,
    every: Annotated[bool, typer.Option("--all", help="Also those that were tried again or dropped.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Prints the groups, oldest first."""
    from tersely.view.plain import one_line

    with _open(run_dir, redis, run, password_env) as quarantine:
        groups = [group for group in quarantine.groups() if every or not group.settled]
        if as_json:
            found = {"run_id": quarantine.run_id, "source": quarantine.source, "groups": [g.to_json() for g in groups]}
            typer.echo(json.dumps(found, indent=2))
            return
        typer.echo(f"run {quarantine.run_id}: {len(groups)} in quarantine (by the {quarantine.source})")
        for group in groups:
            typer.echo(one_line(f"{group.group_id}  issue {group.issue_number}  {group.stage or '-'}  {group.decided}"))
            typer.echo(one_line(f"    {group.error_kind or 'error'}: {group.error}"))


def show(
    words: GroupArgument,
    redis: RedisOption = None,
    run: RunOption = None,
    password_env: PasswordOption = None,
    as_json: JsonOption = False,
) -> None:
    """Prints one group."""
    from tersely.view.plain import one_line

    run_dir, group = _split(words, redis)
    with _open(run_dir, redis, run, password_env) as quarantine:
        found = quarantine.find(group)
        facts = {**found.to_json(), **found.entry()}
    if as_json:
        typer.echo(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    for name, value in facts.items():
        if name == "completions":
            for index, text in enumerate(value):
                typer.echo(one_line(f"completion {index}: {text}"))
        elif value not in (None, "", {}):
            typer.echo(one_line(f"{name}: {json.dumps(value) if isinstance(value, dict) else value}"))


def replay(
    words: GroupArgument,
    redis: RedisOption = None,
    run: RunOption = None,
    password_env: PasswordOption = None,
    as_json: JsonOption = False,
) -> None:
    """Asks for it; the trainer does it within a second, or when the run is taken up again."""
    run_dir, group = _split(words, redis)
    with _open(run_dir, redis, run, password_env) as quarantine:
        _say(quarantine.ask(group, "replay"), as_json)


def drop(
    words: GroupArgument,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why, for the event log.")],
    redis: RedisOption = None,
    run: RunOption = None,
    password_env: PasswordOption = None,
    as_json: JsonOption = False,
) -> None:
    """Asks for it; the trainer does it within a second, or when the run is taken up again."""
    if not reason.strip():
        raise typer.BadParameter("Say why.", param_hint="--reason")
    run_dir, group = _split(words, redis)
    with _open(run_dir, redis, run, password_env) as quarantine:
        _say(quarantine.ask(group, "drop", reason.strip()), as_json)


def _split(words: list[str], redis: str | None) -> tuple[Path | None, str]:
    if len(words) != (2 if redis is None else 1):
        raise typer.BadParameter("Name the directory of the run, unless --redis is given, and one group.")
    return Path(words[0]) if redis is None else None, words[-1]


def _say(asked: dict[str, Any], as_json: bool) -> None:
    words = {"replay": "is to be tried again", "drop": "is to be dropped"}
    text = f"{asked['group_id']} {words[asked['action']]}; `tersely quarantine list --all` shows when it is done"
    typer.echo(json.dumps(asked, indent=2) if as_json else text)


def _open(run_dir: Path | None, redis: str | None, run: str | None, password_env: str | None) -> SetAside:
    from tersely.queue.set_aside import SetAside

    if (run_dir is None) == (redis is None):
        raise typer.BadParameter("Name the directory of a run, or --redis URL.", param_hint="RUN_DIR")
    if run is not None and redis is None:
        raise typer.BadParameter("It goes with --redis; a directory has one run.", param_hint="--run")
    if run_dir is not None:
        return SetAside.of_run(run_dir, password_env)
    assert redis is not None
    return SetAside.of_server(redis, run, password_env)
