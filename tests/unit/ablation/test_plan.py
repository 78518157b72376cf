"""What an ablation file comes to."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from tersely.ablation.plan import inline, load_matrix
from tersely.errors import ConfigError, ConfigFileMissing, ConfigSyntax, ConfigUnknownKey, ConfigValue

RECIPES = Path(__file__).parents[3] / "recipes"
HEAD = f'[ablation]\nrecipe = "{RECIPES / "tiny.toml"}"\nsteps = 9\nseeds = [3, 1]\n'


def write(folder: Path, text: str) -> Path:
    path = folder / "a.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(("name", "cells"), [("ablation", 39), ("ablation-tiny", 26)])
def test_the_recipes_hold_seven_configurations_jointly_and_staged(name: str, cells: int) -> None:
    matrix = load_matrix(RECIPES / f"{name}.toml")
    assert len(matrix.cells) == cells
    assert len({arm.config for arm in matrix.arms}) == 7
    assert len(matrix.arms) == 13, "the length alone has nothing to take turns with"
    assert {cell.recipe.run.steps for cell in matrix.cells} == {matrix.steps}


def test_all_arms_of_a_seed_come_before_the_next_seed(tmp_path: Path) -> None:
    matrix = load_matrix(write(tmp_path, HEAD + "[configs.lone]\n[configs.r]\nrouge_l = 1.0\n"))
    assert [cell.name for cell in matrix.cells] == [
        "lone-seed3",
        "r-joint-seed3",
        "r-staged-seed3",
        "lone-seed1",
        "r-joint-seed1",
        "r-staged-seed1",
    ]


def test_a_joint_run_weighs_all_rewards_from_the_first_step_to_the_last(tmp_path: Path) -> None:
    matrix = load_matrix(write(tmp_path, HEAD + "[configs.r]\nrouge_l = 0.5\nbleu = 2\n"))
    recipe = matrix.cells[0].recipe
    assert recipe.reward_weights(1) == recipe.reward_weights(9) == {"length": 1.0, "rouge_l": 0.5, "bleu": 2.0}


def test_a_staged_run_has_the_length_alone_then_quality_alone_in_as_many_steps(tmp_path: Path) -> None:
    text = HEAD + "length_steps = 3\n[configs.r]\nrouge_l = 0.5\n"
    recipe = load_matrix(write(tmp_path, text)).cells[1].recipe
    assert [recipe.reward_weights(step)["length"] for step in range(1, 10)] == [1.0] * 3 + [0.0] * 6
    assert [recipe.reward_weights(step)["rouge_l"] for step in range(1, 10)] == [0.0] * 3 + [0.5] * 6


def test_an_anchored_run_keeps_a_quarter_of_the_length(tmp_path: Path) -> None:
    text = HEAD + 'schedules = ["anchored"]\nlength_steps = 3\n[configs.r]\nrouge_l = 1\n'
    recipe = load_matrix(write(tmp_path, text)).cells[0].recipe
    lengths = [recipe.reward_weights(step)["length"] for step in range(1, 10)]
    assert lengths == [1.0] * 4 + [0.625] + [0.25] * 4
    assert recipe.reward_weights(4)["rouge_l"] == 1.0


def test_a_reward_takes_options_and_the_length_keeps_those_of_the_recipe(tmp_path: Path) -> None:
    base = (RECIPES / "tiny.toml").read_text().replace('"./data', f'"{RECIPES}/data')
    (tmp_path / "base.toml").write_text(base.replace("[rewards.length]", '[rewards.length]\nshape = "quadratic"'))
    text = '[ablation]\nrecipe = "base.toml"\n[configs.r]\nrouge_l = { weight = 0.5, use_stemmer = false }\n'
    rewards = load_matrix(write(tmp_path, text)).cells[0].recipe.rewards
    assert rewards["length"].options == {"shape": "quadratic"}
    assert (rewards["rouge_l"].weight, rewards["rouge_l"].options) == (0.5, {"use_stemmer": False})


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("[ablation\n", ConfigSyntax, "not valid TOML"),
        ("[configs.r]\n", ConfigValue, "ablation: Field required"),
        (HEAD, ConfigValue, "configs: Field required"),
        (HEAD + "step = 3\n[configs.r]\n", ConfigValue, "ablation.step"),
        (HEAD.replace("[3, 1]", "[3, 3]") + "[configs.r]\n", ConfigValue, "names one of them twice"),
        (HEAD + "[configs.'a b']\n", ConfigValue, "a b"),
        (HEAD + "[configs.r]\nlength = 1.0\n", ConfigValue, "every run trains on"),
        (HEAD + "length_steps = 9\n[configs.r]\nrouge_l = 1\n", ConfigValue, "nothing is left for quality"),
        (HEAD + "[configs.r]\nrouge_l = 1\n[configs.r-joint]\n", ConfigValue, "same name"),
        (HEAD + "[configs.r]\n[measure]\nlimit = 1\n", ConfigValue, "measure.limit"),
        (HEAD + '[configs.r]\n[measure]\nsplit = "test"\n', ConfigValue, "test split"),
        (HEAD + 'set = ["run.stepps=3"]\n[configs.r]\n', ConfigUnknownKey, "run.steps"),
        (HEAD.replace("tiny.toml", "none.toml") + "[configs.r]\n", ConfigFileMissing, "none.toml"),
    ],
)
def test_a_file_that_can_t_be_meant_is_refused(tmp_path: Path, text: str, error: type[ConfigError], words: str) -> None:
    with pytest.raises(error) as caught:
        load_matrix(write(tmp_path, text))
    assert words in str(caught.value)
    assert caught.value.way_out


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigFileMissing, match=r"none\.toml"):
        load_matrix(tmp_path / "none.toml")


@pytest.mark.parametrize("value", [1, 2.5, 1e-9, True, 'a "quoted" \\ é 😀', [{"a b": {"c": [1, "x"]}}], {}])
def test_inline_values_are_read_back_as_they_were(value: object) -> None:
    assert tomllib.loads(f"v = {inline(value)}")["v"] == value
