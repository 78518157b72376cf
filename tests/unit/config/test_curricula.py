"""Stages, ranges of targets and the figure that the best checkpoint is chosen by."""

from __future__ import annotations

from pathlib import Path

import pytest

from tersely.config import Recipe, load_recipe
from tersely.errors import ConfigValue

RECIPES = Path(__file__).parents[3] / "recipes"
CURRICULA = ("joint-rouge", "staged-rouge", "staged-rouge-anchored")


def test_the_curricula_to_compare_differ_in_their_reward_weights_alone() -> None:
    recipes = [load_recipe(RECIPES / f"{name}.toml", environ={}).recipe for name in CURRICULA]
    without = [recipe.model_dump(exclude={"stages", "rewards"}) for recipe in recipes]
    assert without[0] == without[1] == without[2]
    steps = recipes[0].run.steps
    weights = [(recipe.reward_weights(1), recipe.reward_weights(steps)) for recipe in recipes]
    assert weights == [
        ({"length": 1.0, "rouge_l": 1.0}, {"length": 1.0, "rouge_l": 1.0}),
        ({"length": 1.0, "rouge_l": 0.0}, {"length": 0.0, "rouge_l": 1.0}),
        ({"length": 1.0, "rouge_l": 0.0}, {"length": 0.25, "rouge_l": 1.0}),
    ]


@pytest.mark.parametrize(
    ("best_by", "known"),
    [("greedy.rouge_l", "greedy.length"), ("within_5", "greedy.within_5"), ("greedy.mean_tokens", "sampled.stopped")],
)
def test_an_unknown_figure_is_refused_with_the_known_ones_named(tmp_path: Path, best_by: str, known: str) -> None:
    with pytest.raises(ConfigValue, match=r"evaluation\.best_by") as caught:
        load_recipe(None, [f"evaluation.best_by={best_by}"], {})
    assert known in caught.value.message


def test_evaluations_between_steps_need_held_out_prompts() -> None:
    with pytest.raises(ConfigValue, match=r"evaluation\.prompts is 0"):
        load_recipe(None, ["evaluation.prompts=0", "evaluation.every=5"], {})


@pytest.mark.parametrize(
    ("sections", "best_by", "higher"),
    [
        ({}, "greedy.within_5", True),
        ({}, "sampled.mean_abs_length_error", False),
        ({"rewards": {"length": {}, "copy_rate": {"weight": -0.5}}}, "greedy.copy_rate", False),
        ({"rewards": {"length": {}, "rouge_l": {"weight": 0.0}}}, "greedy.rouge_l", True),
        (
            {
                "rewards": {"length": {}, "copy_rate": {}},
                "run": {"steps": 1},
                "stages": [{"name": "s", "steps": 1, "rewards": {"length": {}, "copy_rate": {"weight": -1.0}}}],
            },
            "greedy.copy_rate",
            False,
        ),
    ],
)
def test_every_figure_knows_which_way_is_up(sections: dict[str, object], best_by: str, higher: bool) -> None:
    figure = Recipe.model_validate({**sections, "evaluation": {"best_by": best_by}}).best_figure
    assert figure.higher_is_better is higher
    assert figure.is_better(2.0, 1.0) is higher
    assert not figure.is_better(1.0, 1.0)


def test_a_range_sets_the_limit_by_its_longest_target() -> None:
    recipe = Recipe.model_validate({"length": {"target_range": [16, 100]}})
    assert (recipe.length.targets, recipe.max_completion_tokens) == ((16, 100), 200)
    assert Recipe().length.targets == (64, 64)


def stage(steps: int, **rewards: dict[str, float]) -> dict[str, object]:
    return {"name": "fade", "steps": steps, "rewards": rewards}


@pytest.mark.parametrize(
    ("steps", "weights", "at"),
    [
        (2, {"weight": 1.0, "final_weight": 0.0}, 2),
        (3, {"weight": 0.0, "final_weight": 1.0}, 1),
        (1, {"weight": 0.0, "final_weight": 1.0}, 1),
        (3, {"weight": 1.0, "final_weight": -1.0}, 2),
        (4, {"weight": 0.1, "final_weight": -0.2}, 2),
    ],
)
def test_a_stage_that_comes_to_a_step_without_any_weight_is_refused_and_the_step_named(
    steps: int, weights: dict[str, float], at: int
) -> None:
    with pytest.raises(ValueError, match=f"stage fade: at step {at} of its {steps} all weights are 0"):
        Recipe.model_validate({"run": {"steps": steps}, "stages": [stage(steps, length=weights)]})


def test_a_weight_may_fade_where_another_stays() -> None:
    fading = stage(3, length={"weight": 1.0, "final_weight": 0.0}, rouge_l={"weight": 0.5})
    rewards: dict[str, object] = {"length": {}, "rouge_l": {}}
    recipe = Recipe.model_validate({"run": {"steps": 3}, "rewards": rewards, "stages": [fading]})
    assert [recipe.reward_weights(step)["length"] for step in (1, 2, 3)] == [1.0, 0.5, 0.0]
