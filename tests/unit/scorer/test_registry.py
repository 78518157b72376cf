"""Rewards are found by name; every fault at set-up has its own error and way out."""

import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint

import pytest

from tersely.config.schema import RewardSection
from tersely.errors import ConfigUnknownKey, ConfigValue, RewardFailed, RewardUnknown
from tersely.scorer.registry import build_reward, build_rewards, evaluation_rewards, installed_rewards
from tersely.scorer.rewards.base import Reward, RewardInput
from tersely.scorer.rewards.rouge import RougeLReward

HERE = __name__


class Plugin:
    name = "plugin"
    range = (0.0, 1.0)
    higher_is_better = True
    gamed_by = "nothing"
    absent_reason = "never"

    def __init__(self, *, depth: int = 1) -> None:
        if depth < 0:
            raise ConfigValue("rewards.plugin.depth is below 0.", "Take 0 or more.")
        if depth > 9:
            raise FileNotFoundError("no such depth")

    def score(self, batch: Sequence[RewardInput]) -> list[float | None]:
        return [1.0 for _ in batch]


class Misnamed(Plugin):
    name = "other"


class NotAReward:
    name = "plugin"


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> dict[str, EntryPoint]:
    module = type(sys)("reward_plugin_for_tests")
    module.__dict__.update(Plugin=Plugin, Misnamed=Misnamed, NotAReward=NotAReward)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return {"plugin": point("Plugin")}


def point(attribute: str, module: str = "reward_plugin_for_tests") -> EntryPoint:
    return EntryPoint("plugin", f"{module}:{attribute}", "tersely.rewards")


def test_built_in_rewards_are_installed_and_fulfil_the_protocol() -> None:
    assert {"length", "rouge_l"} <= set(installed_rewards())
    for name in ("length", "rouge_l"):
        reward = build_reward(name)
        assert isinstance(reward, Reward)
        assert reward.range[0] < reward.range[1]
        assert reward.gamed_by


def test_rewards_come_in_the_order_of_the_recipe_with_their_options() -> None:
    sections = {
        "rouge_l": RewardSection.model_validate({"weight": 0.5, "measure": "recall"}),
        "length": RewardSection.model_validate({"scale": "raw"}),
    }
    rouge, length = build_rewards(sections)
    assert (rouge.name, length.name) == ("rouge_l", "length")
    item = RewardInput(text="one two three four", reference="one two", token_count=4, target_tokens=2)
    assert rouge.score([item]) == [1.0]
    assert length.score([item]) == [-2.0]


def test_an_unknown_reward_names_the_nearest() -> None:
    with pytest.raises(RewardUnknown, match="'rougel'") as caught:
        build_reward("rougel")
    assert caught.value.way_out == "Did you mean rouge_l?"


def test_an_unknown_option_names_the_nearest() -> None:
    with pytest.raises(ConfigUnknownKey, match=r"rewards\.length\.scal") as caught:
        build_reward("length", {"scal": "raw"})
    assert caught.value.way_out == "Did you mean scale?"


def test_a_misspelt_weight_is_recognised() -> None:
    with pytest.raises(ConfigUnknownKey) as caught:
        build_reward("length", {"wieght": 2.0})
    assert caught.value.way_out == "Did you mean weight?"


def test_a_plugin_gets_its_options_and_may_refuse_them(plugin: dict[str, EntryPoint]) -> None:
    assert build_reward("plugin", {"depth": 3}, plugin).score([RewardInput(text="x")]) == [1.0]
    with pytest.raises(ConfigValue, match="below 0"):
        build_reward("plugin", {"depth": -1}, plugin)


@pytest.mark.parametrize(
    ("entry", "options", "said"),
    [
        (point("Plugin"), {"depth": 10}, "FileNotFoundError: no such depth"),
        (point("Missing"), {}, "AttributeError"),
        (point("Plugin", module="no_such_package_anywhere"), {}, "the package no_such_package_anywhere is missing"),
        (point("Misnamed"), {}, "not named plugin"),
        (point("NotAReward"), {}, "does not fulfil"),
    ],
    ids=["constructor raises", "no such class", "no such package", "misnamed", "not a reward"],
)
def test_a_reward_that_cant_be_set_up_says_why(
    plugin: dict[str, EntryPoint], entry: EntryPoint, options: dict[str, object], said: str
) -> None:
    with pytest.raises(RewardFailed, match=said) as caught:
        build_reward("plugin", options, {"plugin": entry})
    assert caught.value.way_out


def test_two_packages_with_one_reward_name_are_refused() -> None:
    with pytest.raises(RewardFailed, match="Two packages"):
        installed_rewards([point("Plugin"), point("Misnamed")])
    assert set(installed_rewards([point("Plugin"), point("Plugin")])) == {"plugin"}


def test_evaluation_adds_length_and_rouge_l_where_missing_and_keeps_the_order() -> None:
    assert [r.name for r in evaluation_rewards([build_reward("length")])] == ["length", "rouge_l"]
    assert [r.name for r in evaluation_rewards([build_reward("rouge_l")])] == ["rouge_l", "length"]


def test_evaluation_reports_rouge_l_as_f1_whatever_is_trained_on() -> None:
    trained = [build_reward("rouge_l", {"measure": "recall"})]
    (rouge, _) = evaluation_rewards(trained)
    assert isinstance(rouge, RougeLReward)
    assert rouge.measure == "fmeasure"


def test_the_scorer_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, tersely.scorer.service, tersely.scorer.registry as r; r.evaluation_rewards([]);"
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert out.stdout.strip() == "[]"
