"""No alarm goes off in runs that learned: figures of real runs on SmolLM2-135M (healthy_runs.json)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tersely.config import Recipe
from tersely.trainer.alarms import AlarmWatch

RUNS: dict[str, Any] = json.loads(Path(__file__).with_name("healthy_runs.json").read_text())


def recipe(weights: dict[str, float], **alarms: Any) -> Recipe:
    return Recipe.model_validate(
        {"rewards": {name: {"weight": weight} for name, weight in weights.items()}, "alarms": alarms}
    )


@pytest.mark.parametrize("name", RUNS)
def test_a_real_run_that_learned_raises_nothing(name: str) -> None:
    run = RUNS[name]
    first, last = run["steps"][0], run["steps"][-1]
    assert last["mean_abs_length_error"] < first["mean_abs_length_error"] / 2  # it did learn
    watch = AlarmWatch(recipe(run["weights"]))
    assert [alarm for step in run["steps"] for alarm in watch.observe(step)] == []


@pytest.mark.parametrize("name", RUNS)
def test_the_limits_are_not_so_wide_that_nothing_could_be_seen(name: str) -> None:
    """The same figures turned bad from the tenth step on."""
    run = RUNS[name]
    watch = AlarmWatch(recipe(run["weights"], window_steps=4))
    bad = {"truncated": 0.9, "length_std": 0.5, "mean_abs_length_error": 40.0, "entropy": 0.05, "self_overlap": 0.5}
    steps = [{**step, **bad} if step["step"] >= 10 else step for step in run["steps"]]
    names = {alarm.name for step in steps for alarm in watch.observe(step)}
    assert names >= {"length_at_limit", "length_spread_gone", "length_far", "entropy_collapse", "template_collapse"}
