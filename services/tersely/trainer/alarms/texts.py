"""Alarms about what the completions say."""

from __future__ import annotations

from collections.abc import Sequence

from tersely.config import Recipe
from tersely.trainer.alarms.alarm import Sign, Words, too_high, too_low
from tersely.trainer.alarms.history import History
from tersely.trainer.text_figures import commonest_opening
from tersely.v1 import group_pb2

_CAUSE = (
    "The policy has found one text that scores well whatever the document says: a reward that a template satisfies"
    " (length alone does not look at content), or steps large enough to forget the rest."
)
_CHANGE = (
    "Give one that looks at the content (rouge_l, embedding, judge) some weight, or lower learner.learning_rate; go"
    " back to a checkpoint from before."
)


def template_collapse(history: History, recipe: Recipe) -> list[Sign]:
    """Completions of different prompts are alike, or made of few words."""
    limits, signs = recipe.alarms, []
    over = f"over the last {history.window_steps} steps"
    if (distinct := history.mean("distinct_2")) is not None:
        message = f"only {100 * distinct:.0f} % of the word pairs in the completions differ, {over}"
        signs.append(too_low(distinct, limits.distinct_2_floor, **_words(message)))
    if (overlap := history.mean("self_overlap")) is not None:
        message = f"completions share {100 * overlap:.0f} % of their word pairs with another prompt's, {over}"
        signs.append(too_high(overlap, limits.self_overlap, **_words(message)))
    if (opening := history.mean("opening_share")) is not None:
        message = f"{100 * opening:.0f} % of the completions begin with the same four words, {over}"
        signs.append(too_high(opening, limits.opening_share, **_words(message)))
    return signs


def quote(groups: Sequence[group_pb2.ScoredGroup]) -> str:
    """The commonest first words of the batch, to add to a message; empty where there are none."""
    words, share = commonest_opening([[c.text for c in group.group.completions] for group in groups])
    return f'; {100 * share:.0f} % of the last batch begin "{words}"' if words else ""


def _words(message: str) -> Words:
    return Words(message=message, cause=_CAUSE, setting="rewards", change=_CHANGE)
