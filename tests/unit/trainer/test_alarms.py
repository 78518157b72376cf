"""Each alarm goes off at what it is for, and not at what is near it; once, and again only after it has cleared."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from tersely.config import Recipe
from tersely.testing.modules import load_module
from tersely.trainer.alarms import ALARMS, AlarmWatch
from tersely.trainer.samples import batch_figures, reward_columns

_traces = load_module(Path(__file__).with_name("traces.py"))
trace, raised, two_rewards, group_of_lengths = (
    _traces.trace,
    _traces.raised,
    _traces.two_rewards,
    _traces.group_of_lengths,
)

Changes = Callable[[int], dict[str, Any]]
STEPS = 60
FROM = 25
"""First step of what goes wrong in a trace."""


def after(**changes: Any) -> Changes:
    return lambda step: changes if step >= FROM else {}


def apart(nats: float) -> dict[str, Any]:
    """Two nodes, the second so far away from the learner."""
    return {
        "rollout-1": {"engine": "torch", "nats": 5e-6, "tokens": 700},
        "rollout-2": {"engine": "mlx", "nats": nats, "tokens": 100},
    }


CASES: dict[str, list[tuple[str, Changes, Changes]]] = {
    "length_at_limit": [
        (
            "half of all cut off",
            after(truncated=0.6),
            lambda step: {"truncated": max(0.0, 1.0 - 0.035 * step)},  # much at first, and falling
        ),
    ],
    "length_spread_gone": [
        (
            "one wrong length",
            after(length_std=0.4, mean_abs_length_error=20.0),
            after(length_std=0.4, mean_abs_length_error=1.0),  # one length, the right one
        ),
    ],
    "length_far": [
        (
            "nothing learned",
            lambda _: {"mean_abs_length_error": 30.0},
            lambda step: {"mean_abs_length_error": 30 - step / 5},
        ),
        (
            "learned and lost",
            after(mean_abs_length_error=40.0),
            after(mean_abs_length_error=24.0),
        ),
    ],
    "entropy_collapse": [
        ("below the floor", lambda _: {"entropy": 0.05}, lambda _: {"entropy": 0.12}),
        ("fell from what it was", after(entropy=0.3), after(entropy=0.6)),
    ],
    "rewards_fight": [
        (
            "length against rouge_l",
            after(reward_correlation={"length~rouge_l": -0.8}),
            after(reward_correlation={"length~rouge_l": -0.3}),
        ),
    ],
    "loss_of_signal": [("most groups alike", after(zero_variance=0.9), after(zero_variance=0.5))],
    "mismatch_high": [
        ("on fresh samples", after(mismatch=0.2), after(mismatch=0.2, staleness=1.5)),  # stale: the policy's change
    ],
    "node_mismatch": [
        ("one of two", after(mismatch_by_node=apart(0.3)), after(mismatch_by_node=apart(0.04))),
    ],
    "gradient_jump": [
        ("not finite", lambda step: {"grad_norm": math.nan} if step == FROM else {}, lambda _: {"grad_norm": 9.0}),
        (
            "twice in a row",
            lambda step: {"grad_norm": 90.0} if step in (FROM, FROM + 1) else {},
            lambda step: {"grad_norm": 90.0} if step in (FROM, FROM + 2) else {},  # two lone peaks
        ),
    ],
    "groups_too_old": [("half thrown away", after(stale_share=0.5), after(stale_share=0.2))],
    "template_collapse": [
        ("few word pairs", after(distinct_2=0.1), after(distinct_2=0.5)),
        ("one text for all", after(self_overlap=0.8), after(self_overlap=0.15)),
        ("one opening for all", after(opening_share=1.0), after(opening_share=0.8)),
    ],
}
FLAT = [(name, what, bad, near) for name, cases in CASES.items() for what, bad, near in cases]
IDS = [f"{name}: {what}" for name, what, _, _ in FLAT]


def test_every_alarm_has_a_case() -> None:
    assert CASES.keys() == ALARMS.keys()


def test_a_run_that_learns_raises_nothing() -> None:
    assert raised(two_rewards(), trace(200)) == []


@pytest.mark.parametrize(("name", "what", "bad", "near"), FLAT, ids=IDS)
def test_it_goes_off_once_and_says_what_to_do(name: str, what: str, bad: Changes, near: Changes) -> None:
    alarms = raised(two_rewards(), trace(STEPS, bad))
    assert [alarm.name for alarm in alarms] == [name]
    (alarm,) = alarms
    assert alarm.message
    assert alarm.cause
    assert alarm.change
    assert is_recipe_key(alarm.setting)
    json.dumps(asdict(alarm))


@pytest.mark.parametrize(("name", "what", "bad", "near"), FLAT, ids=IDS)
def test_it_stays_silent_near_by(name: str, what: str, bad: Changes, near: Changes) -> None:
    assert raised(two_rewards(), trace(STEPS, near)) == []


@pytest.mark.parametrize(("name", "what", "bad", "near"), FLAT, ids=IDS)
def test_a_run_taken_up_again_anywhere_raises_no_more_and_no_less(
    name: str, what: str, bad: Changes, near: Changes
) -> None:
    figures = trace(STEPS, bad)
    whole = raised(two_rewards(), figures)
    events: list[dict[str, Any]] = []
    watch = AlarmWatch(two_rewards())
    for step in figures:
        alarms = watch.observe(step)
        if step["step"] % 5 == 0 or alarms:
            again = AlarmWatch(two_rewards())
            assert again.warm_up(from_log(events)) == []
            assert again.observe(step) == alarms
            assert again.active == watch.active
        events.append({"kind": "step_finished", "time": 0.0, **step})
        events += [{"kind": "alarm", "time": 0.0, **asdict(alarm)} for alarm in alarms]
    assert sum(event["kind"] == "alarm" for event in events) == len(whole)


def test_an_alarm_that_was_not_written_before_the_trainer_died_is_given_back() -> None:
    figures = trace(STEPS, after(zero_variance=0.9))
    (alarm,) = raised(two_rewards(), figures)
    events = [{"kind": "step_finished", **step} for step in figures if step["step"] <= alarm.step]
    assert AlarmWatch(two_rewards()).warm_up(events) == [alarm]


def test_of_two_alarms_of_one_name_at_one_step_the_log_can_lack_one() -> None:
    recipe = two_rewards(rewards={"length": {}, "rouge_l": {}, "copy_rate": {"weight": 0.5}})
    fight = {"length~rouge_l": -0.9, "copy_rate~length": -0.9}
    figures = trace(STEPS, lambda _: {"reward_correlation": fight})
    first, second = raised(recipe, figures)
    assert (first.name, first.step) == (second.name, second.step)
    events = [{"kind": "step_finished", **step} for step in figures if step["step"] <= first.step]
    assert AlarmWatch(recipe).warm_up(events) == [first, second]
    assert AlarmWatch(recipe).warm_up([*events, {"kind": "alarm", **asdict(first)}]) == [second]


def test_it_goes_off_again_only_after_it_has_cleared() -> None:
    def around(low: float) -> Changes:
        return lambda step: {"zero_variance": low if 50 <= step < 70 or step < 20 else 0.9}

    limit = Recipe().alarms.zero_variance_share
    hovering = raised(two_rewards(), trace(100, around(limit - 0.05)))
    cleared = raised(two_rewards(), trace(100, around(limit - 0.2)))
    assert [alarm.name for alarm in hovering] == ["loss_of_signal"]
    assert [alarm.name for alarm in cleared] == ["loss_of_signal", "loss_of_signal"]


def test_nothing_is_judged_by_less_than_a_window() -> None:
    window = Recipe().alarms.window_steps
    bad = trace(window - 1, lambda _: {"truncated": 1.0, "entropy": 0.0, "zero_variance": 1.0, "distinct_2": 0.0})
    assert raised(two_rewards(), bad) == []


def test_a_run_that_was_rolled_back_is_watched_from_there() -> None:
    watch = AlarmWatch(two_rewards())
    bad = trace(40, after(entropy=0.05))
    first = [alarm.step for step in bad for alarm in watch.observe(step)]
    assert len(first) == 1
    assert watch.active
    watch.roll_back(24)
    assert not watch.active
    assert [alarm for step in trace(60)[24:] for alarm in watch.observe(step)] == []

    resumed = AlarmWatch(two_rewards())
    events = [{"kind": "step_finished", **step} for step in bad]
    (told,) = raised(two_rewards(), bad)
    events += [{"kind": "alarm", **asdict(told)}, {"kind": "rolled_back", "to_step": 24}]
    assert resumed.warm_up(events) == []
    assert not resumed.active
    assert [alarm for step in trace(80)[40:] for alarm in resumed.observe(step)] == []  # steps go on being counted

    same = AlarmWatch(two_rewards())
    for step in bad:
        same.observe(step)
    again = [alarm.step for step in bad[24:] for alarm in same.observe(step)]  # the trouble comes back
    assert again == first


def test_rewards_that_have_no_weight_together_do_not_fight() -> None:
    fight = lambda _: {"reward_correlation": {"length~rouge_l": -0.9}}  # noqa: E731
    weightless = two_rewards(rewards={"length": {}, "rouge_l": {"weight": 0.0}})
    assert raised(weightless, trace(STEPS, fight)) == []
    staged = two_rewards(
        run={"steps": 60},
        stages=[
            {"name": "length", "steps": 30, "rewards": {"length": {}}},
            {"name": "both", "steps": 30, "rewards": {"length": {}, "rouge_l": {}}},
        ],
    )
    (alarm,) = raised(staged, trace(STEPS, fight))
    assert (alarm.name, alarm.setting) == ("rewards_fight", "stages")
    assert 30 + staged.alarms.window_steps / 2 <= alarm.step <= 30 + staged.alarms.window_steps
    assert "length" in alarm.message
    assert "rouge_l" in alarm.message


def test_a_penalty_fights_with_a_reward_that_rises_with_it() -> None:
    penalty = two_rewards(rewards={"length": {}, "rouge_l": {"weight": -1.0}})
    together = lambda _: {"reward_correlation": {"length~rouge_l": 0.9}}  # noqa: E731
    assert {alarm.name for alarm in raised(penalty, trace(STEPS, together))} == {"rewards_fight"}
    assert raised(two_rewards(), trace(STEPS, together)) == []


def test_the_setting_is_the_missing_length_term_where_a_stage_has_none() -> None:
    recipe = two_rewards(
        run={"steps": 60},
        stages=[
            {"name": "length", "steps": 25, "rewards": {"length": {}}},
            {"name": "quality", "steps": 35, "rewards": {"rouge_l": {}}},
        ],
    )
    alarms = raised(recipe, trace(STEPS, after(mean_abs_length_error=45.0)))
    assert [(alarm.name, alarm.setting) for alarm in alarms] == [("length_far", "rewards.length.weight")]


def test_the_text_of_a_template_is_quoted() -> None:
    groups = [group_of_lengths(f"p{i}", [8, 8], Recipe()) for i in range(3)]
    for group in groups:
        for completion in group.group.completions:
            completion.text = "In this paper we present a new method."
    watch = AlarmWatch(two_rewards())
    alarms = [alarm for step in trace(STEPS, after(self_overlap=1.0)) for alarm in watch.observe(step, groups)]
    assert '"in this paper we"' in alarms[0].message


def test_padding_to_the_limit_is_told_within_a_window_not_a_day() -> None:
    """Completions drift to the limit, their spread goes, and with it the signal (reward hacking on TL;DR)."""
    recipe, draw = Recipe(), random.Random(7)
    limit, size, prompts = recipe.max_completion_tokens, 8, 4
    watch, alarms = AlarmWatch(recipe), []
    for step in range(1, 81):
        drift = min(1.0, max(0.0, (step - 20) / 20))  # from step 20 to 40 all completions move to the limit
        groups, alike, issue = [], 0, 0
        while len(groups) < prompts and alike < 16:
            lengths = [round(draw.gauss(64 + (limit + 16 - 64) * drift, 20 * (1 - drift) + 2)) for _ in range(size)]
            group = group_of_lengths(f"p{issue}", lengths, recipe, seed=step)
            issue += 1
            if len(set(reward_columns(group)["length"])) > 1:
                groups.append(group)
            else:
                alike += 1
        if not groups:  # a batch without any signal is an alarm of its own, of the loop
            groups = [group]
        figures = {
            **batch_figures(groups),
            "step": step,
            "entropy": 2.5,
            "grad_norm": 2.0,
            "mismatch": 0.0,
            "staleness": 0.0,
            "zero_variance": alike / (alike + len(groups)),
            "stale_share": 0.0,
        }
        alarms += watch.observe(figures, groups)
    first = {alarm.name: alarm.step for alarm in reversed(alarms)}
    assert first.keys() >= {"length_at_limit", "length_spread_gone", "loss_of_signal"}
    assert 20 < first["length_at_limit"] <= 40  # while it drifts
    assert first["loss_of_signal"] <= 55
    assert first["length_spread_gone"] <= 55
    assert len(alarms) == len(first)  # each once
    at_limit = next(alarm for alarm in alarms if alarm.name == "length_at_limit")
    assert str(limit) in at_limit.message


def from_log(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As they come back from the event log, which holds null for what is not finite."""
    return json.loads(json.dumps(events).replace("NaN", "null"))


def is_recipe_key(key: str) -> bool:
    """Whether a dotted key exists in a recipe; any name may follow `rewards.`."""
    part: Any = two_rewards().model_dump()
    for name in key.split("."):
        if name not in part:
            return False
        part = part[name]
    return True
