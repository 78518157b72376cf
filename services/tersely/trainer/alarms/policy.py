"""Alarms about the policy, its updates and what they come from."""

from __future__ import annotations

import math
from statistics import median

from tersely.config import Recipe
from tersely.trainer.alarms.alarm import Sign, too_high, too_low
from tersely.trainer.alarms.history import Figures, History, mean_of, number
from tersely.trainer.reward_figures import PAIR


def entropy_collapse(history: History, recipe: Recipe) -> list[Sign]:
    """The policy is nearly deterministic, or much more so than at the start."""
    entropy, first = history.mean("entropy"), history.first_mean("entropy")
    if entropy is None:
        return []
    floor = recipe.alarms.entropy_floor
    limit = floor if first is None else max(floor, recipe.alarms.entropy_fall * first)
    since = "" if first is None else f"; it began at {first:.2f}"
    return [
        too_low(
            entropy,
            limit,
            message=f"mean entropy of the last {history.window_steps} steps is {entropy:.3f} nats a token{since}",
            cause="The policy puts nearly all its weight on one token each time: samples of a group become copies of"
            " one another, and no advantage is left. Steps are too large, or there are too many of them on the data.",
            setting="learner.learning_rate",
            change="Lower it and go back to a checkpoint from before; a small learner.kl_coefficient or a higher"
            " learner.clip_high keeps the entropy up.",
        )
    ]


def rewards_fight(history: History, recipe: Recipe) -> list[Sign]:
    """Two rewards that are both trained on call for opposite things."""
    pairs = {pair for figures in history.window for pair in figures.get("reward_correlation") or {}}
    limit, signs = recipe.alarms.reward_correlation, []
    for pair in sorted(pairs):
        one, other = pair.split(PAIR)
        weights = [recipe.reward_weights(int(figures["step"])) for figures in history.window]
        values = [
            _correlation(figures, pair, weight.get(one, 0.0) * weight.get(other, 0.0))
            for figures, weight in zip(history.window, weights, strict=True)
        ]
        mean = mean_of(values, history.window_steps / 2)
        if history.count < history.window_steps:
            continue
        apart = values[-1] is None and not (weights[-1].get(one) and weights[-1].get(other))
        if mean is None and not apart:
            continue
        smaller = min((one, other), key=lambda name: abs(weights[-1].get(name, 0.0)))
        value = mean if mean is not None and not apart else 0.0
        signs.append(
            too_low(
                value,
                limit,
                excused=apart,
                over=apart,
                message=f"{one} and {other} fight: within a group, completions that are good for one are bad for the"
                f" other (correlation {value:.2f} over the last {history.window_steps} steps)",
                cause=f"Both {one} and {other} have weight, and the policy can't have both; their advantages cancel"
                " out, and the run goes nowhere or where the larger weight pulls.",
                setting=f"rewards.{smaller}.weight" if not recipe.stages else "stages",
                change=f"Lower the weight of {one} or {other}, or train them in stages.",
                subject=pair,
            )
        )
    return signs


def loss_of_signal(history: History, recipe: Recipe) -> list[Sign]:
    """Most groups have completions that all got the same reward."""
    share = history.mean("zero_variance")
    if share is None:
        return []
    limit = recipe.alarms.zero_variance_share
    within = mean_of([number(figures.get("within_5")) for figures in history.window], 1) or 0.0
    return [
        too_high(
            share,
            limit,
            message=f"{100 * share:.0f} % of the groups that were generated for the last {history.window_steps} steps"
            f" had no signal; {100 * within:.0f} % of the completions are within +-5 tokens",
            cause="All completions of such a group got the same reward. With most of them within +-5 tokens the run has"
            " learned what its rewards can teach; otherwise all are equally bad: cut off, empty, or copies.",
            setting="run.group_size",
            change="Raise it or sampling.temperature; or end the run here, when its figures are good.",
        )
    ]


def mismatch_high(history: History, recipe: Recipe) -> list[Sign]:
    """Sampler and learner disagree about tokens that the same weights sampled."""
    mean = history.mean("mismatch", lambda figures: number(figures.get("staleness")) == 0)
    if mean is None:
        return []
    limit = recipe.alarms.mismatch_nats
    return [
        too_high(
            mean,
            limit,
            message=f"learner and sampler are {mean:.3f} nats a token apart on fresh samples; rounding alone is below"
            " 0.02",
            cause="They do not compute the same policy: another precision, a worker with other weights or another"
            " temperature than it says, a chat template or an attention kernel that differs.",
            setting="learner.correction",
            change="Set it to tis, which weighs the difference out, and find the worker: try rollout.engine = torch and"
            " rollout.device = cpu.",
        )
    ]


def node_mismatch(history: History, recipe: Recipe) -> list[Sign]:
    """One rollout node of several disagrees with the learner about tokens that the same weights sampled."""
    seen = [figures.get("mismatch_by_node") or {} for figures in history.window]
    engines = {node: str(entry.get("engine")) for by_node in seen for node, entry in by_node.items()}
    limit, signs = recipe.alarms.mismatch_nats, []
    for node in sorted(engines):
        entries = [by_node[node] for by_node in seen if node in by_node]
        nats = [(number(entry.get("nats")), number(entry.get("tokens")) or 0.0) for entry in entries]
        tokens = sum(count for value, count in nats if value is not None)
        if history.count < history.window_steps or not tokens:
            continue
        mean = sum(value * count for value, count in nats if value is not None) / tokens
        signs.append(
            too_high(
                mean,
                limit,
                message=f"node {node} ({engines[node]}) is {mean:.3f} nats a token away from the learner on fresh"
                f" samples; rounding alone is below 0.02, and {len(engines)} nodes were seen",
                cause="That node does not compute the learner's policy: another precision, weights it did not take, or"
                " an engine that computes this model differently.",
                setting="rollout.engine",
                change="Start that node again, or with --engine torch, and compare; learner.correction = tis weighs the"
                " difference out meanwhile.",
                subject=node,
            )
        )
    return signs


def gradient_jump(history: History, recipe: Recipe) -> list[Sign]:
    """The gradient is not finite, or a multiple of what it was, for two steps in a row."""
    if "grad_norm" not in history.last:
        return []
    norm = number(history.last["grad_norm"])  # the event log keeps one that is not finite as null
    earlier = [known for known in (number(figures.get("grad_norm")) for figures in history.before) if known is not None]
    usual = median(earlier[:-1]) if len(earlier) > history.window_steps // 2 else None
    if norm is None:
        return [
            Sign(
                value=None,
                limit=None,
                wrong=True,
                clear=False,
                message="the gradient is not finite",
                cause="An overflow in the model or the loss: weights that have run away, or a precision too low.",
                setting="learner.learning_rate",
                change="Go back to a checkpoint from before and halve it.",
            )
        ]
    if usual is None:
        return [Sign(norm, None, wrong=False, clear=True, message="", cause="", setting="", change="")]
    limit = recipe.alarms.grad_norm_factor * usual
    value = min(norm, earlier[-1])
    return [
        Sign(
            value=value,
            limit=limit,
            wrong=value > limit,
            clear=norm <= limit,
            message=f"the gradient's norm was at least {value:.3g} for two steps in a row, usually {usual:.3g}",
            cause="The policy has left the region where its steps were small: a learning rate too high, or samples so"
            " old that their ratios are far from 1.",
            setting="learner.learning_rate",
            change="Go back to a checkpoint from before and halve it; learner.max_grad_norm limits each step.",
        )
    ]


def groups_too_old(history: History, recipe: Recipe) -> list[Sign]:
    """Much of what is generated is thrown away as stale."""
    share = history.mean("stale_share")
    if share is None:
        return []
    limit = recipe.alarms.stale_share
    return [
        too_high(
            share,
            limit,
            message=f"{100 * share:.0f} % of the groups that came in during the last {history.window_steps} steps were"
            " too old to train on",
            cause="Workers take longer for a group than the learner for run.max_staleness steps: their work is lost.",
            setting="run.max_staleness",
            change="Raise it (with learner.correction = tis), or let the slow workers go.",
        )
    ]


def _correlation(figures: Figures, pair: str, product: float) -> float | None:
    """Correlation of a pair as the weights of the step see it: a negative weight turns its reward round."""
    value = number((figures.get("reward_correlation") or {}).get(pair))
    return None if value is None or product == 0 else math.copysign(value, value * product)
