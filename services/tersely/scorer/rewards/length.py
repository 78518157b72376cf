"""How far a summary's length is from the length asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from tersely.scorer.rewards.base import RewardInput, checked_choice


class LengthReward:
    """Minus the distance to the target, in tokens that were sampled; characters and bytes never count.

    Args:
        scale: `relative`: -|tokens - target| / target. `raw`: -|tokens - target|.

    Values are float64, so two lengths one token apart never get the same value.
    """

    name: ClassVar[str] = "length"
    range: ClassVar[tuple[float, float]] = (float("-inf"), 0.0)
    higher_is_better: ClassVar[bool] = True
    gamed_by: ClassVar[str] = "any text of the right length, also one that says nothing or repeats itself"
    absent_reason: ClassVar[str] = "no token count or no target length"

    def __init__(self, *, scale: str = "relative") -> None:
        self._relative = checked_choice(self.name, "scale", scale, ("relative", "raw")) == "relative"

    def score(self, batch: Sequence[RewardInput]) -> list[float | None]:
        """Values <= 0; None without a token count or with a target below 1."""
        return [self._value(item) for item in batch]

    def _value(self, item: RewardInput) -> float | None:
        if item.token_count is None or not item.target_tokens:
            return None
        # 0.0 - x: a perfect length is 0.0 and not -0.0
        distance = 0.0 - abs(item.token_count - item.target_tokens)
        return distance / item.target_tokens if self._relative else distance
