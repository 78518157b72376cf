"""Alarms about lengths."""

from __future__ import annotations

from tersely.config import Recipe
from tersely.evaluation import WITHIN_TOKENS
from tersely.trainer.alarms.alarm import CLEAR_MARGIN, Sign, too_high, too_low
from tersely.trainer.alarms.history import History, number

WINDOWS_TO_LEARN = 4
"""A run whose lengths have not come nearer to the target after so many windows is stuck."""
LITTLE_PROGRESS = 0.95
"""Length error over that of the first steps above which nothing was learned."""


def at_limit(history: History, recipe: Recipe) -> list[Sign]:
    """Completions are cut off, and not fewer and fewer of them, as at the start of a healthy run."""
    share = history.mean("truncated")
    if share is None:
        return []
    limit = recipe.alarms.at_limit_share
    return [
        too_high(
            share,
            limit,
            excused=history.falls("truncated"),
            message=f"{100 * share:.0f} % of the completions of the last {history.window_steps} steps were cut off at"
            f" {recipe.max_completion_tokens} tokens",
            cause="Running on pays: a reward rises with length and outweighs the length term, or the updates are so"
            " large that the policy forgot how to stop. Completions that all end at the limit have no spread in length,"
            " and nothing is left to learn from.",
            setting="rewards.length.weight" if _untrained_length(history, recipe) else "learner.learning_rate",
            change="Raise it, or keep a length term in every stage."
            if _untrained_length(history, recipe)
            else "Halve it and go back to a checkpoint from before; a higher length.max_completion_tokens only moves"
            " the wall.",
        )
    ]


def spread_gone(history: History, recipe: Recipe) -> list[Sign]:
    """All completions of a prompt have one length, and it is the wrong one."""
    spread, error = history.mean("length_std"), history.mean("mean_abs_length_error")
    if spread is None or error is None:
        return []
    limit = recipe.alarms.length_spread_tokens
    return [
        too_low(
            spread,
            limit,
            excused=error <= WITHIN_TOKENS,
            over=error < (1 - CLEAR_MARGIN) * WITHIN_TOKENS,
            message=f"completions of one prompt differ by only {spread:.2f} tokens in length (standard deviation),"
            f" {error:.1f} tokens away from the target",
            cause="Every completion of a group gets the same length reward, so the length term has no gradient any"
            " more: usually all of them run into the limit, or the policy has become nearly deterministic.",
            setting="sampling.temperature",
            change="Set it to 1 or above, and go back to a checkpoint from before with a lower learner.learning_rate.",
        )
    ]


def far(history: History, recipe: Recipe) -> list[Sign]:
    """Lengths are not learned, or have been forgotten."""
    error, first, lowest = (
        history.mean("mean_abs_length_error"),
        history.first_mean("mean_abs_length_error"),
        history.lowest_length_error(),
    )
    if error is None or first is None or lowest is None:
        return []
    untrained = _untrained_length(history, recipe)
    lost_limit = max(recipe.alarms.length_lost_factor * lowest, 2 * WITHIN_TOKENS)
    signs = [
        too_high(
            error,
            lost_limit,
            message=f"lengths are {error:.1f} tokens from the target; they were {lowest:.1f} tokens from it before",
            cause="No length reward holds the length any more: other rewards pull it away."
            if untrained
            else "What was learned about length is being lost: updates too large, or another reward outweighs it.",
            setting="rewards.length.weight" if untrained else "learner.learning_rate",
            change="Give the length reward a weight in this stage too, if a small one."
            if untrained
            else "Lower it, or raise rewards.length.weight.",
        )
    ]
    patience = max(WINDOWS_TO_LEARN * history.window_steps, history.window_steps + 2 * recipe.learner.warmup_steps)
    if not untrained and history.count >= patience:
        stuck_limit = max(LITTLE_PROGRESS * first, WITHIN_TOKENS)
        signs.append(
            too_high(
                error,
                stuck_limit,
                message=f"after {history.count} steps lengths are {error:.1f} tokens from the target, at the start they"
                f" were {first:.1f}",
                cause="The steps are too small to be seen, or the groups too small to tell good lengths from bad.",
                setting="learner.learning_rate",
                change="Raise it (full training of a model this small takes 1e-5 to 1e-4 under a length reward), then"
                " run.group_size.",
            )
        )
    return signs


def _untrained_length(history: History, recipe: Recipe) -> bool:
    """Whether no length reward has a weight at the newest step."""
    step = int(number(history.last.get("step")) or 1)
    return not recipe.reward_weights(step).get("length")
