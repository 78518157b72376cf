"""Held-out figures by which a best checkpoint can be chosen, and which way of each is up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tersely.config.stages import StageSection

_LENGTH_FIGURES = {"within_5": True, "stopped": True, "mean_abs_length_error": False}
_MODES: tuple[Literal["greedy", "sampled"], ...] = ("greedy", "sampled")


@dataclass(frozen=True, slots=True)
class HeldOutFigure:
    """One figure of an evaluation, e.g. ``HeldOutFigure("greedy", "within_5", True)``.

    Attributes:
        mode: Greedy completions or sampled ones.
        name: Share within +-5 tokens, share stopped, mean absolute length error, or the mean of a reward.
        higher_is_better: Which way is up.
    """

    mode: Literal["greedy", "sampled"]
    name: str
    higher_is_better: bool

    def is_better(self, value: float, than: float) -> bool:
        """Whether a value beats another; equal values do not."""
        return value > than if self.higher_is_better else value < than


def held_out_figures(weights: Mapping[str, float], stages: Sequence[StageSection]) -> dict[str, HeldOutFigure]:
    """Every figure a recipe can choose by, e.g. ``greedy.within_5``, ``sampled.rouge_l``.

    Of a reward whose weights are below 0 in sum, less is better: the run trains it away.

    Args:
        weights: Weight of each reward outside stages.
        stages: The curriculum, if there is one.
    """
    up = dict(_LENGTH_FIGURES)
    for name, weight in weights.items():
        in_stages = (stage.rewards[name] for stage in stages if name in stage.rewards)
        total = sum(reward.weight + (reward.final_weight or 0.0) for reward in in_stages) if stages else weight
        up[name] = total >= 0
    return {f"{mode}.{name}": HeldOutFigure(mode, name, better) for mode in _MODES for name, better in up.items()}
