"""How far a summary's length is from the length asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from tersely.errors import ConfigValue
from tersely.scorer.rewards.base import RewardInput, checked_choice

SHAPES = ("linear", "quadratic", "band")
DEFAULT_TOLERANCE_TOKENS = 5


class LengthReward:
    """Minus the distance to the target, in tokens that were sampled; characters and bytes never count.

    With d = |tokens - target|, over the target when relative:

    * `linear`: -d. Two lengths one token apart never get the same value (float64).
    * `quadratic`: -d**2: mild near the target, steep far from it.
    * `band`: -(d beyond the tolerance): 0 for every length within it.

    Args:
        scale: `relative`: distances over the target. `raw`: in tokens.
        shape: See above.
        tolerance: Tokens to either side of the target that cost nothing (default 5); for `band` only.
    """

    name: ClassVar[str] = "length"
    range: ClassVar[tuple[float, float]] = (float("-inf"), 0.0)
    higher_is_better: ClassVar[bool] = True
    gamed_by: ClassVar[str] = "any text of the right length, also one that says nothing or repeats itself"
    absent_reason: ClassVar[str] = "no token count or no target length"

    def __init__(self, *, scale: str = "relative", shape: str = "linear", tolerance: int | None = None) -> None:
        self._relative = checked_choice(self.name, "scale", scale, ("relative", "raw")) == "relative"
        self._shape = checked_choice(self.name, "shape", shape, SHAPES)
        self._tolerance = _checked_tolerance(self._shape, tolerance)

    def score(self, batch: Sequence[RewardInput]) -> list[float | None]:
        """Values <= 0; None without a token count or with a target below 1."""
        return [self._value(item) for item in batch]

    def _value(self, item: RewardInput) -> float | None:
        if item.token_count is None or not item.target_tokens:
            return None
        tokens_off = max(0, abs(item.token_count - item.target_tokens) - self._tolerance)
        distance = tokens_off / item.target_tokens if self._relative else float(tokens_off)
        # 0.0 - x: a perfect length is 0.0 and not -0.0
        return 0.0 - (distance**2 if self._shape == "quadratic" else distance)


def _checked_tolerance(shape: str, tolerance: object) -> int:
    if tolerance is None:
        return DEFAULT_TOLERANCE_TOKENS if shape == "band" else 0
    if shape != "band":
        raise ConfigValue(
            f"rewards.length.tolerance is set, but the shape is {shape}.", 'Set shape = "band", or leave tolerance out.'
        )
    if isinstance(tolerance, int) and not isinstance(tolerance, bool) and tolerance >= 0:
        return tolerance
    raise ConfigValue(f"rewards.length.tolerance is {tolerance!r}; it must be a whole number of tokens.", "Use 5.")
