"""`[[stages]]`: a curriculum as config. A run without stages uses the weights in `[rewards]` throughout."""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Self

from pydantic import Field, model_validator

from tersely.config.section import Section

_NO_WEIGHT = 1e-9  # what rounding leaves where a weight crosses 0


class StageReward(Section):
    """Weight of one reward during a stage."""

    weight: float = Field(1.0, description="Factor in the advantage at the stage's first step.")
    final_weight: float | None = Field(
        None, description="Factor at the stage's last step, approached in equal steps; none: the same throughout."
    )


class StageSection(Section):
    """Some steps with their own reward weights; a reward that is not named has weight 0 in it."""

    name: str = Field(min_length=1, description="What people call it.")
    steps: int = Field(ge=1, description="How many steps it lasts.")
    rewards: dict[str, StageReward] = Field(min_length=1, description="Weights by the names of [rewards].")

    @model_validator(mode="after")
    def _trains_on_something(self) -> Self:
        for place in range(self.steps):
            if all(abs(weight) < _NO_WEIGHT for weight in self.weights_at(place).values()):
                raise ValueError(
                    f"stage {self.name}: at step {place + 1} of its {self.steps} all weights are 0, and at least one"
                    " reward needs a weight other than 0"
                )
        return self

    def weights_at(self, place: int) -> dict[str, float]:
        """Weights at a step of the stage, from 0; linear from `weight` to `final_weight` over its steps."""
        progress = place / (self.steps - 1) if self.steps > 1 else 0.0

        def at(reward: StageReward) -> float:
            final = reward.weight if reward.final_weight is None else reward.final_weight
            return reward.weight + (final - reward.weight) * progress

        return {name: at(reward) for name, reward in self.rewards.items()}


def check_stages(stages: Sequence[StageSection], rewards: Set[str], steps: int) -> None:
    """Holds stages against the rest of the recipe.

    Raises:
        ValueError: A stage names a reward that the recipe does not have, or the stages do not add up to the run.
    """
    if not stages:
        return
    for stage in stages:
        if unknown := sorted(stage.rewards.keys() - rewards):
            raise ValueError(
                f"stages.{stage.name} weighs {unknown[0]}, which [rewards] does not list: add [rewards.{unknown[0]}]"
            )
    total = sum(stage.steps for stage in stages)
    if total != steps:
        raise ValueError(f"run.steps is {steps}, but the stages have {total} steps together: set run.steps = {total}")


def stage_at(stages: Sequence[StageSection], step: int) -> tuple[StageSection, int]:
    """The stage of a step that counts from 1, and the step's number within it, from 0; past the end the last one."""
    first = 1
    for stage in stages:
        if step < first + stage.steps:
            return stage, step - first
        first += stage.steps
    return stages[-1], stages[-1].steps - 1


def stage_bounds(stages: Sequence[StageSection]) -> list[tuple[StageSection, int, int]]:
    """Each stage with its first and last step, counted from 1."""
    bounds, first = [], 1
    for stage in stages:
        bounds.append((stage, first, first + stage.steps - 1))
        first += stage.steps
    return bounds


def stage_weights(stages: Sequence[StageSection], step: int) -> dict[str, float]:
    """Weights of the rewards that the stage of a step names."""
    stage, place = stage_at(stages, step)
    return stage.weights_at(place)
