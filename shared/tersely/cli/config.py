"""`tersely config show|check`: what a recipe comes to, and whether it can be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tersely.cli.options import JsonOption, SetOption

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from tersely.config import Recipe

FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="Recipe, a TOML file.")]


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    group = typer.Typer(help="Look at recipes.", no_args_is_help=True, rich_markup_mode=None)
    group.command("show", help="Every setting, its value and where it comes from.")(show)
    group.command("check", help="Exit 0 if the recipe can be used, else the error's code.")(check)
    app.add_typer(group, name="config")


def show(file: FileArgument, overrides: SetOption = None, as_json: JsonOption = False) -> None:
    """Prints the resolved recipe."""
    from tersely.config import load_recipe
    from tersely.queue.connect import without_password

    rows = [
        (key, without_password(str(value)) if key == "queue.url" and value else value, source)
        for key, value, source in load_recipe(file, overrides or ()).rows()
    ]
    if as_json:
        typer.echo(json.dumps({key: {"value": value, "source": source.text} for key, value, source in rows}, indent=2))
        return
    cells = [(key, json.dumps(value, ensure_ascii=False), source.text) for key, value, source in rows]
    key_width = max(len(key) for key, _, _ in cells)
    value_width = min(40, max(len(value) for _, value, _ in cells))
    for key, value, source in cells:
        typer.echo(f"{key:<{key_width}}  {value:<{value_width}}  {source}")


def check(file: FileArgument, overrides: SetOption = None) -> None:
    """Prints `ok`, or fails with the error's code."""
    from tersely.config import load_recipe

    recipe = load_recipe(file, overrides or ()).recipe
    check_plugins(recipe)
    check_addresses(recipe)
    typer.echo("ok")


def check_addresses(recipe: Recipe) -> None:
    """Checks where the services started here would listen.

    Raises:
        PlaintextRefused: Beyond loopback, without certificates for TLS and without `rpc.insecure_lan`.
    """
    from tersely.errors import PlaintextRefused
    from tersely.identity.folder import has_identity
    from tersely.rpc.address import Address

    hosts = {"rpc.host": recipe.rpc.host, "scorer.host": recipe.scorer.host, "judge.host": recipe.judge.host}
    for key, host in hosts.items():
        role = {"rpc.host": "trainer"}.get(key, key.partition(".")[0])
        if not Address(host, 0).loopback and not recipe.rpc.insecure_lan and not has_identity(role):
            raise PlaintextRefused(
                f"{key} is {host}: plaintext gRPC beyond this machine has to be allowed by name.",
                f"Set {key} to 127.0.0.1; or use TLS (tersely ca init); or set rpc.insecure_lan = true on a network"
                " where you trust every machine.",
            )


def check_plugins(recipe: Recipe) -> None:
    """Checks what the recipe names by entry point: rewards, their options, the engine of the workers started here.

    Raises:
        RewardUnknown, ConfigUnknownKey, ConfigValue.
    """
    from importlib.metadata import entry_points

    from tersely.config.nearest import nearest
    from tersely.errors import ConfigValue, RewardUnknown

    rewards = {entry.name: entry for entry in entry_points(group="tersely.rewards")}
    for name, section in recipe.rewards.items():
        if name not in rewards:
            raise RewardUnknown(f"rewards.{name}: no installed package provides this reward.", nearest(name, rewards))
        if section.options:
            _check_options(rewards[name], section.options)
    _check_judge(recipe)
    engines = {entry.name for entry in entry_points(group="tersely.engines")}
    engine = recipe.rollout.engine
    if recipe.rollout.workers and engine not in engines:
        raise ConfigValue(
            f"rollout.engine: no installed package provides the engine {engine!r}.", nearest(engine, engines)
        )


def _check_judge(recipe: Recipe) -> None:
    """The reward `judge` needs somebody to ask."""
    import os

    from tersely.errors import ConfigValue
    from tersely.supervise.local_run import JUDGE_ENV

    reward = recipe.rewards.get("judge")
    if reward is None or reward.options.get("address") or recipe.judge.endpoint or os.environ.get(JUDGE_ENV):
        return
    raise ConfigValue(
        "rewards.judge is used, but nothing says which judge to ask.",
        "Set judge.endpoint to the URL of an OpenAI-compatible endpoint (and judge.model), or rewards.judge.address to"
        f" the host:port of a running `tersely judge`, or {JUDGE_ENV}.",
    )


def _check_options(entry: EntryPoint, options: dict[str, object]) -> None:
    """Holds a reward's options against its constructor; what can't be imported here is left to the scorer."""
    from tersely.config.plugins import refuse_unknown_options

    try:
        reward = entry.load()
    except ImportError:
        return
    refuse_unknown_options(entry.name, reward, options)
    if entry.dist is not None and entry.dist.name == "tersely":  # others may load a model when they are made
        getattr(reward, "check_options", reward)(**options)
