import tomllib
from pathlib import Path

import pytest

from tersely.config import load_recipe, recipe_from_json
from tersely.errors import ConfigFileMissing, ConfigSyntax, ConfigUnknownKey, ConfigValue

RECIPES = Path(__file__).parents[3] / "recipes"


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return path


RECIPE_FILES = [path for path in sorted(RECIPES.glob("*.toml")) if "[ablation]" not in path.read_text()]


@pytest.mark.parametrize("path", RECIPE_FILES, ids=lambda path: path.stem)
def test_every_recipe_of_the_repo_loads(path: Path) -> None:
    recipe = load_recipe(path, environ={}).recipe
    assert recipe_from_json(recipe.model_dump_json()) == recipe


def test_an_ablation_is_no_recipe_and_the_way_out_names_its_command() -> None:
    with pytest.raises(ConfigUnknownKey, match="is an ablation") as caught:
        load_recipe(RECIPES / "ablation-tiny.toml", environ={})
    assert "tersely ablate" in caught.value.way_out


def test_later_layers_win_and_each_value_knows_its_layer(tmp_path: Path) -> None:
    path = write(tmp_path, "[run]\nsteps = 3\ngroup_size = 4\nseed = 1\n")
    loaded = load_recipe(path, ["run.seed=9"], {"TERSELY_SET_RUN__STEPS": "5", "TERSELY_SET_RUN__SEED": "8"})
    run = loaded.recipe.run
    assert (run.steps, run.group_size, run.seed, run.max_staleness) == (5, 4, 9, 0)
    where = {key: source.text for key, _, source in loaded.rows()}
    assert where["run.steps"] == "env TERSELY_SET_RUN__STEPS"
    assert where["run.group_size"] == "file recipe.toml"
    assert where["run.seed"] == "--set"
    assert where["run.max_staleness"] == "default"


def test_values_of_set_are_toml_or_plain_text(tmp_path: Path) -> None:
    path = write(tmp_path, "")
    recipe = load_recipe(path, ["data.source=my-set", "learner.learning_rate=1e-5", "rpc.insecure_lan=true"], {}).recipe
    assert (recipe.data.source, recipe.learner.learning_rate, recipe.rpc.insecure_lan) == ("my-set", 1e-5, True)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("[run]\nstep = 3\n", "run.steps"),
        ("[lerner]\nthreads = 1\n", "learner"),
        ("[run]\nlearning_rate = 1.0\n", "learner.learning_rate"),
        ("zzz = 1\n", "Known here"),
    ],
)
def test_unknown_keys_are_refused_with_the_nearest_name(tmp_path: Path, text: str, hint: str) -> None:
    with pytest.raises(ConfigUnknownKey) as caught:
        load_recipe(write(tmp_path, text), environ={})
    assert hint in caught.value.way_out


def test_an_unknown_key_given_by_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigUnknownKey, match=r"run\.stepz"):
        load_recipe(write(tmp_path, ""), ["run.stepz=3"], {})


@pytest.mark.parametrize(
    "text",
    [
        "[run]\ngroup_size = 1\n",
        "[length]\ntarget_tokens = 64\nmax_completion_tokens = 64\n",
        '[data]\nprompt = "no fields"\n',
        "[rewards.length]\nweight = 0.0\n",
        "run = 3\n",
    ],
)
def test_values_out_of_range_name_the_key(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigValue) as caught:
        load_recipe(write(tmp_path, text), environ={})
    key = next(iter(tomllib.loads(text)))
    assert key in caught.value.message


def test_missing_file_bad_toml_and_bad_set(tmp_path: Path) -> None:
    with pytest.raises(ConfigFileMissing):
        load_recipe(tmp_path / "none.toml", environ={})
    with pytest.raises(ConfigSyntax):
        load_recipe(write(tmp_path, "[run\n"), environ={})
    with pytest.raises(ConfigSyntax, match="key=value"):
        load_recipe(write(tmp_path, ""), ["run.steps"], {})
    with pytest.raises(ConfigSyntax, match="not a table"):
        load_recipe(write(tmp_path, "[run]\nsteps = 2\n"), ["run.steps.more=1"], {})


def test_paths_are_relative_to_the_recipe_and_names_are_not(tmp_path: Path) -> None:
    path = write(tmp_path, '[data]\nsource = "./x.jsonl"\n[model]\nname = "org/model"\n')
    recipe = load_recipe(path, environ={}).recipe
    assert recipe.data.source == str(tmp_path / "x.jsonl")
    assert recipe.model.name == "org/model"


def test_reward_options_reach_the_reward(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, '[rewards.length]\nscale = "raw"\n'), environ={}).recipe
    assert recipe.rewards["length"].options == {"scale": "raw"}
