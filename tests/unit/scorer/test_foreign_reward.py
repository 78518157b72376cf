"""A reward of another package is found by its entry point, and one that is wrong harms nothing but its own values."""

from __future__ import annotations

import importlib
import shutil
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from tersely.errors import ConfigUnknownKey, RewardFailed
from tersely.scorer.batch import score_batch
from tersely.scorer.registry import build_reward
from tersely.scorer.rewards.base import RewardInput
from tersely.scorer.rows import score_rows

PACKAGE = Path(__file__).parents[2] / "fixtures" / "reward_package"
MODULE = "tersely_ends_well"


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The package as pip leaves it in a site folder: its module, and a dist-info with entry points."""
    project = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]
    shutil.copytree(PACKAGE / MODULE, tmp_path / MODULE)
    info = tmp_path / f"{MODULE}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    points = project["entry-points"]["tersely.rewards"]
    (info / "entry_points.txt").write_text(
        "[tersely.rewards]\n" + "".join(f"{name} = {value}\n" for name, value in points.items())
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield
    sys.modules.pop(MODULE, None)


def test_it_is_found_by_its_entry_point_and_scores_beside_the_built_in_ones() -> None:
    assert "ends_well" in entry_points(group="tersely.rewards").names
    rows = [
        {"id": "a", "completion": "It works.", "reference": "It works."},
        {"id": "b", "completion": "", "reference": "It works."},
    ]
    assert score_rows(rows, ["rouge_l", "ends_well"]) == [
        {"id": "a", "rewards": {"rouge_l": 1.0, "ends_well": 1.0}},
        {"id": "b", "rewards": {"rouge_l": 0.0, "ends_well": None}, "errors": {"ends_well": "the summary is empty"}},
    ]


def test_its_options_are_checked_by_their_names() -> None:
    (row,) = score_rows([{"id": "a", "completion": "Why?"}], ["ends_well"], options={"ends_well": {"mark": "?"}})
    assert row["rewards"] == {"ends_well": 1.0}
    with pytest.raises(ConfigUnknownKey, match=r"rewards\.ends_well\.marks"):
        build_reward("ends_well", {"marks": "?"})


def test_values_of_a_wrong_type_are_absent_with_what_was_given_and_the_rest_goes_on() -> None:
    (row,) = score_rows([{"id": "a", "completion": "It works."}], ["ends_typed_wrong", "ends_well"])
    assert row["rewards"] == {"ends_typed_wrong": None, "ends_well": 1.0}
    assert row["errors"] == {"ends_typed_wrong": "TypeError: gave 'well' (str), which is no number"}


def test_a_reward_that_raises_loses_only_the_groups_it_raises_for() -> None:
    inputs = [RewardInput(text=text, group_key=key) for text, key in [("Fine.", "1"), ("Really?", "2"), ("Good.", "3")]]
    rewards = [build_reward("ends_raising"), build_reward("ends_well")]
    rows = score_batch(inputs, rewards)
    assert [row[0].HasField("value") for row in rows] == [True, False, True]
    assert rows[1][0].name == "ends_raising"
    assert rows[1][0].absent_reason == "RuntimeError: a question is no summary"
    assert [row[1].value for row in rows] == [1.0, 0.0, 1.0]


def test_one_that_lacks_what_a_reward_must_have_is_refused_by_its_class_and_name() -> None:
    with pytest.raises(RewardFailed, match=r"tersely_ends_well:EndsIncomplete .* ends_incomplete"):
        build_reward("ends_incomplete")
