"""The ablation file and what it comes to: arms (rewards and schedule), and cells (an arm on one seed).

A cell is the base recipe with a few `--set` items, so that `tersely up` can repeat any of them by hand.
"""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, ValidationError, model_validator

from tersely.config import Recipe, load_recipe
from tersely.config.section import Section
from tersely.errors import ConfigFileMissing, ConfigSyntax, ConfigValue
from tersely.evaluation.files import is_test_split

Schedule = Literal["joint", "staged", "anchored"]
ConfigName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_+-]{0,63}$")]

ANCHOR_WEIGHT = 0.25
"""What is left of the length reward at the end of an anchored run."""


class MatrixSection(Section):
    """What all runs share, and what is crossed."""

    recipe: str = Field(description="Base recipe, relative to this file; its own [rewards] and [[stages]] give way.")
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1, description="One run per seed for every arm.")
    schedules: tuple[Schedule, ...] = Field(
        ("joint", "staged"),
        min_length=1,
        description="joint: all rewards from the first step on; staged: the length alone, then quality alone; anchored:"
        " the length alone, then quality beside a length reward that sinks to a quarter.",
    )
    steps: int | None = Field(None, ge=2, description="Steps of every run; none: those of the recipe.")
    length_steps: int | None = Field(
        None, ge=1, description="Steps of a staged run that train on the length alone; none: half of them."
    )
    set: tuple[str, ...] = Field((), description="Items of --set for every run.")

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        for name, values in (("seeds", self.seeds), ("schedules", self.schedules)):
            if len(set(values)) != len(values):
                raise ValueError(f"{name} {list(values)} names one of them twice")
        return self


class MeasureSection(Section):
    """How each trained policy is measured."""

    limit: int | None = Field(None, ge=2, description="Held-out prompts; none: evaluation.prompts of the recipe.")
    split: str | None = Field(None, description="Split of the data; none: data.eval_split of the recipe.")
    samples: int = Field(1, ge=1, description="Sampled completions per prompt, beside the greedy one.")
    seed: int = Field(1234, ge=0, description="Sampling seed.")
    rewards: tuple[str, ...] = Field((), description="More rewards to show, beside the usual figures.")
    tested: tuple[str, ...] = Field(
        ("abs_length_error", "within_5", "composite", "composite_at_equal_length"),
        min_length=1,
        description="Figures that arms are tested on. Each adds comparisons, and the correction is over all of them.",
    )
    mode: Literal["greedy", "sampled"] = Field("sampled", description="Completions that the tests are about.")

    @property
    def how(self) -> dict[str, object]:
        """What a measurement depends on, for JSON."""
        return self.model_dump(mode="json", include={"limit", "split", "samples", "seed", "rewards"})


class AblationFile(Section):
    """A whole file. Rewards of a configuration: a weight, or a table of `weight` and the reward's options."""

    ablation: MatrixSection
    configs: dict[ConfigName, dict[str, float | dict[str, Any]]] = Field(
        min_length=1, description="Rewards beside the length, by the configuration's name; none: the length alone."
    )
    measure: MeasureSection = MeasureSection()


@dataclass(frozen=True, slots=True)
class Arm:
    """Rewards and how they take turns; a configuration without quality rewards has nothing to take turns with."""

    config: str
    schedule: Schedule | None

    @property
    def name(self) -> str:
        """`rouge joint`, or `length_only`."""
        return f"{self.config} {self.schedule}" if self.schedule else self.config


@dataclass(frozen=True, slots=True)
class Cell:
    """One run.

    Attributes:
        arm: What it trains with.
        seed: Its `run.seed`.
        overrides: Items of `--set` that make the cell out of the base recipe.
        recipe: The same, checked.
    """

    arm: Arm
    seed: int
    overrides: tuple[str, ...]
    recipe: Recipe

    @property
    def name(self) -> str:
        """Name of its directory."""
        parts = (self.arm.config, *([self.arm.schedule] if self.arm.schedule else []), f"seed{self.seed}")
        return "-".join(parts)

    @property
    def recipe_sha256(self) -> str:
        """What tells this run from one with other settings; a default that a later version adds is none."""
        return hashlib.sha256(self.recipe.model_dump_json(exclude_defaults=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Matrix:
    """All that a file asks for.

    Attributes:
        file: The ablation file.
        recipe_path: Base recipe.
        steps: Steps of every run.
        measure: How policies are measured.
        cells: Runs, seed by seed, so that an early end leaves every arm with the same seeds.
    """

    file: Path
    recipe_path: Path
    steps: int
    measure: MeasureSection
    cells: tuple[Cell, ...]

    @property
    def arms(self) -> tuple[Arm, ...]:
        """Each arm once, in the order of the file."""
        return tuple(dict.fromkeys(cell.arm for cell in self.cells))


def load_matrix(path: Path) -> Matrix:
    """Reads an ablation file and checks every run that it asks for.

    Raises:
        ConfigFileMissing, ConfigSyntax, ConfigUnknownKey, ConfigValue: In the file itself, or in a recipe of it.
    """
    file = _read(path)
    recipe_path = (path.resolve().parent / file.ablation.recipe).resolve()
    base = load_recipe(recipe_path, file.ablation.set).recipe
    steps = file.ablation.steps or base.run.steps
    length_steps = file.ablation.length_steps or steps // 2
    if not 0 < length_steps < steps:
        raise ConfigValue(
            f"{path}: ablation.length_steps is {length_steps} of {steps} steps: nothing is left for quality.",
            f"Set ablation.length_steps below {steps}.",
        )
    limit = file.measure.limit or base.evaluation.prompts
    if limit < 2:
        raise ConfigValue(
            f"{path}: {recipe_path.name} has {limit} held-out prompts, and a comparison needs two or more.",
            "Set measure.limit.",
        )
    if is_test_split(file.measure.split or base.data.eval_split):
        raise ConfigValue(
            f"{path}: measure.split is a test split. An ablation is there to choose, and what was chosen by it is no"
            " longer tested by it.",
            "Measure on a validation split; `tersely evaluate --final` is for the one that was chosen.",
        )
    measure = file.measure.model_copy(update={"limit": limit, "split": file.measure.split or base.data.eval_split})
    length = base.rewards["length"].options if "length" in base.rewards else {}
    cells = []
    for seed in file.ablation.seeds:
        for arm, rewards, stages in _arms(file, length, steps, length_steps):
            overrides = (
                *file.ablation.set,
                f"run.seed={seed}",
                f"run.steps={steps}",
                "evaluation.every=0",
                "evaluation.prompts=0",  # measured afterwards, all in the same way
                f"rewards={inline(rewards)}",
                f"stages={inline(stages)}",
            )
            cells.append(Cell(arm, seed, overrides, load_recipe(recipe_path, overrides).recipe))
    if len({cell.name for cell in cells}) < len(cells):
        raise ConfigValue(
            f"{path}: two configurations come to runs of the same name.", "Rename one; NAME-joint clashes with NAME."
        )
    return Matrix(path.resolve(), recipe_path, steps, measure, tuple(cells))


def inline(value: object) -> str:
    """A value as TOML on one line, as `--set` takes it."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(str(key))} = {inline(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(inline(part) for part in value) + "]"
    return json.dumps(value, ensure_ascii=False)


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name, ensure_ascii=False)


def _read(path: Path) -> AblationFile:
    try:
        tree = tomllib.loads(path.read_bytes().decode())
    except OSError as error:
        raise ConfigFileMissing(
            f"Can't read the ablation {path}: {error.strerror}.", "Check the path; recipes/ablation.toml is one."
        ) from None
    except (ValueError, RecursionError) as error:
        raise ConfigSyntax(f"{path} is not valid TOML: {error}.", "Mend the line that the message names.") from None
    try:
        return AblationFile.model_validate(tree)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
        raise ConfigValue(
            f"{path} is not an ablation: {'; '.join(lines)}.", "docs/ablation.md lists what such a file may hold."
        ) from None


def _arms(
    file: AblationFile, length: Mapping[str, object], steps: int, length_steps: int
) -> Iterator[tuple[Arm, dict[str, Any], list[dict[str, Any]]]]:
    """Each arm with its `rewards` and `stages`."""
    for name, config in file.configs.items():
        if "length" in config:
            raise ConfigValue(
                f"{file.ablation.recipe}: configs.{name} names the length, which every run trains on.",
                f"Leave length out of configs.{name}; its options come from [rewards.length] of the recipe.",
            )
        quality = {key: value if isinstance(value, dict) else {"weight": value} for key, value in config.items()}
        if not quality:
            yield Arm(name, None), {"length": {**length, "weight": 1.0}}, []
            continue
        for schedule in file.ablation.schedules:
            weights = {key: float(value.get("weight", 1.0)) for key, value in quality.items()}
            rewards = {"length": {**length, "weight": 1.0}, **quality}
            yield Arm(name, schedule), rewards, _stages(schedule, weights, steps, length_steps)


def _stages(schedule: Schedule, quality: Mapping[str, float], steps: int, length_steps: int) -> list[dict[str, Any]]:
    if schedule == "joint":
        return []
    rest = steps - length_steps
    weighed: dict[str, dict[str, float]] = {name: {"weight": weight} for name, weight in quality.items()}
    first: dict[str, Any] = {"name": "length", "steps": length_steps, "rewards": {"length": {"weight": 1.0}}}
    if schedule == "staged":
        return [first, {"name": "quality", "steps": rest, "rewards": weighed}]
    sinking = {**weighed, "length": {"weight": 1.0, "final_weight": ANCHOR_WEIGHT}}
    held = {**weighed, "length": {"weight": ANCHOR_WEIGHT}}
    stages = [first, {"name": "quality, length sinking", "steps": (rest + 1) // 2, "rewards": sinking}]
    if rest // 2:
        stages.append({"name": "quality, length held", "steps": rest // 2, "rewards": held})
    return stages
