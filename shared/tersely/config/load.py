"""Layers of a recipe: defaults, file, environment, `--set`; later ones win, and each value remembers its layer.

Environment: `TERSELY_SET_RUN__STEPS=10` sets `run.steps`. Values of `--set` and the environment are read as TOML,
and as a plain string where that fails, so `--set data.source=./x.jsonl` needs no quotes.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from tersely.config.nearest import nearest, nearest_name
from tersely.config.schema import Recipe, RewardSection
from tersely.errors import ConfigFileMissing, ConfigSyntax, ConfigUnknownKey, ConfigValue

ENV_PREFIX = "TERSELY_SET_"


@dataclass(frozen=True, slots=True)
class Source:
    """Where a value came from, for people: "default", "file demo.toml", "env TERSELY_SET_...", "--set"."""

    text: str


@dataclass(frozen=True, slots=True)
class LoadedRecipe:
    """A checked recipe and, per dotted key, where its value came from."""

    recipe: Recipe
    sources: Mapping[str, Source]

    def rows(self) -> Iterator[tuple[str, object, Source]]:
        """(dotted key, value, source) of every setting, in schema order."""
        for key, value in _flatten(self.recipe.model_dump(mode="json")):
            yield key, value, self.sources.get(key, Source("default"))


def load_recipe(
    path: Path | None, overrides: Sequence[str] = (), environ: Mapping[str, str] | None = None
) -> LoadedRecipe:
    """Reads and checks a recipe.

    Args:
        path: TOML file; relative paths inside it are relative to its folder. None: no file, only the other layers.
        overrides: Items `dotted.key=value` of `--set`.
        environ: Environment to read; the process's own by default.

    Raises:
        ConfigFileMissing, ConfigSyntax, ConfigUnknownKey, ConfigValue.
    """
    tree = _read_toml(path) if path else {}
    sources = {key: Source(f"file {path.name}") for key, _ in _flatten(tree)} if path else {}
    shown = path or Path("settings")
    env = os.environ if environ is None else environ
    for name in sorted(n for n in env if n.startswith(ENV_PREFIX)):
        key = name.removeprefix(ENV_PREFIX).lower().replace("__", ".")
        _assign(tree, key, _parse_value(env[name]), where=name)
        sources[key] = Source(f"env {name}")
    for item in overrides:
        key, equals, text = item.partition("=")
        if not equals or not key.strip():
            raise ConfigSyntax(f"--set {item!r} is not of the form key=value.", "Write it like --set run.steps=10.")
        _assign(tree, key.strip(), _parse_value(text), where="--set")
        sources[key.strip()] = Source("--set")
    if "ablation" in tree:
        raise ConfigUnknownKey(
            f"{shown} is an ablation, a matrix of runs, and no recipe of one.", f"Run it by: tersely ablate {shown}"
        )
    _refuse_unknown(Recipe, tree, "", shown)
    try:
        recipe = Recipe.model_validate(tree)
    except ValidationError as error:
        raise _as_config_value(error, shown) from None
    return LoadedRecipe(recipe.resolve_paths(path.resolve().parent if path else Path.cwd()), sources)


def recipe_from_json(text: str) -> Recipe:
    """A recipe as a node gets it from the trainer."""
    return Recipe.model_validate_json(text)


def read_recipe(path: Path) -> Recipe:
    """The recipe.json of a run directory.

    Raises:
        ConfigValue: It is damaged, or of another version of tersely.
    """
    try:
        return Recipe.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigValue(
            f"{path} is not a recipe that this version of tersely can read: {error}",
            "Use the version that trained the run, or restore the file from a backup.",
        ) from None


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigFileMissing(
            f"Can't read the recipe {path}: {error.strerror}.", "Check the path; recipes/ holds some to start from."
        ) from None
    try:
        return tomllib.loads(raw.decode())
    except (ValueError, RecursionError) as error:  # tomllib's own is a ValueError; so is a number of 5,000 digits
        raise ConfigSyntax(f"{path} is not valid TOML: {error}.", "Mend the line that the message names.") from None


def _parse_value(text: str) -> object:
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except (ValueError, RecursionError):
        return text


def _assign(tree: dict[str, Any], key: str, value: object, where: str) -> None:
    *parents, last = key.split(".")
    node = tree
    for part in parents:
        child = node.setdefault(part, {})
        if not isinstance(child, dict):
            raise ConfigSyntax(f"{where}: {key} goes into {part}, which is a value and not a table.", "Check the key.")
        node = child
    node[last] = value


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def known_keys(model: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[str]:
    """Every dotted key a recipe may hold, tables included."""
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}"
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from known_keys(field.annotation, f"{prefix}{name}.")


def _refuse_unknown(model: type[BaseModel], tree: Mapping[str, Any], prefix: str, path: Path) -> None:
    for key, value in tree.items():
        field = model.model_fields.get(key)
        if field is None:
            raise ConfigUnknownKey(f"{path} (or --set): unknown key {prefix}{key}.", _nearest(model, key, prefix))
        annotation = field.annotation
        if not isinstance(value, Mapping):
            continue
        if isinstance(annotation, type) and issubclass(annotation, BaseModel) and annotation is not RewardSection:
            _refuse_unknown(annotation, value, f"{prefix}{key}.", path)


def _nearest(model: type[BaseModel], key: str, prefix: str) -> str:
    sibling = nearest_name(key, model.model_fields)
    if sibling is not None:
        return f"Did you mean {prefix}{sibling}?"
    elsewhere = {name.rpartition(".")[2]: name for name in known_keys()}
    far = nearest_name(key, elsewhere, cutoff=0.8)
    if far is not None:
        return f"Did you mean {elsewhere[far]}?"
    return f"Known here: {', '.join(model.model_fields)}."


def _as_config_value(error: ValidationError, path: Path) -> ConfigValue | ConfigUnknownKey:
    lines: list[str] = []
    ways_out: list[str] = []
    for problem in error.errors():
        place = problem["loc"]
        where = ".".join(str(part) for part in place)
        if problem["type"] == "extra_forbidden":
            fields = _fields_at(Recipe, place[:-1])
            return ConfigUnknownKey(f"{path} (or --set): unknown key {where}.", nearest(str(place[-1]), fields))
        message = problem["msg"].removeprefix("Value error, ")
        given = problem.get("input")
        shown = f" (given: {given!r})" if where and not isinstance(given, Mapping) else ""
        lines.append(f"{where}: {message}{shown}" if where else message)
        ways_out += _ways_out(where, problem["type"], problem.get("ctx", {}))
    return ConfigValue(
        f"{path}: " + "; ".join(lines) + ".",
        " ".join(ways_out) or "Do what the message says; `tersely config show FILE` lists all values.",
    )


_BOUNDS = {
    "greater_than_equal": ("ge", "to {} or more"),
    "greater_than": ("gt", "to more than {}"),
    "less_than_equal": ("le", "to {} or less"),
    "less_than": ("lt", "to less than {}"),
    "literal_error": ("expected", "to one of {}"),
    "too_short": ("min_length", "to at least {} of them"),
    "too_long": ("max_length", "to at most {} of them"),
    "string_pattern_mismatch": ("pattern", "to text of the form {}"),
}
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text in quotes",
    "tuple": "a list in brackets",
    "dict": "a table",
    "model": "a table",
}


def _ways_out(where: str, kind: str, context: Mapping[str, Any]) -> Iterator[str]:
    """What to set a key to, where the kind of problem says so."""
    if kind in _BOUNDS:
        name, text = _BOUNDS[kind]
        yield f"Set {where} {text.format(context[name])}."
    elif kind == "finite_number":
        yield f"Set {where} to a number; a large one where there is to be no limit."
    elif kind == "missing":
        yield f"Add {where}."
    elif where and (article := _KINDS.get(kind.split("_")[0])):
        yield f"Write {where} as {article}."


def _fields_at(model: type[BaseModel], place: Sequence[int | str]) -> list[str]:
    """Names that the table at a place may hold."""
    for part in place:
        field = model.model_fields.get(str(part))
        inside = next(_models_in(field.annotation), None) if field is not None else None
        model = inside or model
    return list(model.model_fields)


def _models_in(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)
