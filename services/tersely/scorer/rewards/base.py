"""What a reward gets, what it gives, and how it says that an option is wrong."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from tersely.config.nearest import nearest
from tersely.errors import ConfigValue

__all__ = ["ReasonedValues", "Reward", "RewardInput", "checked_choice", "nearest"]


@dataclass(frozen=True, slots=True)
class RewardInput:
    """One completion, as every reward sees it.

    Attributes:
        text: The summary, decoded without special tokens.
        token_count: Its length: sampled ids without the stop token, all of them if it was cut off at the limit.
            None when the caller does not know it; text is never tokenised again to find out.
        stopped: Whether it ended by a stop token; None when the caller does not know.
        target_tokens: Length asked for, in the same tokens; None when there is none.
        reference: Reference summary; empty when there is none.
        document: Source text; may be empty.
        group_key: Same for completions of one prompt. What a reward derives from the prompt, it may keep per key
            within one call; a failure is contained to one key.
    """

    text: str
    token_count: int | None = None
    stopped: bool | None = None
    target_tokens: int | None = None
    reference: str = ""
    document: str = ""
    group_key: str = ""


@runtime_checkable
class Reward(Protocol):
    """A reward plugin: a class under the entry point group `tersely.rewards`, named like the entry point.

    The constructor takes the options of the recipe's `[rewards.NAME]` table as keyword arguments (without `weight`)
    and raises `ConfigValue` for a bad value. It is called once, before any work is leased.
    """

    @property
    def name(self) -> str:
        """Name in the recipe, equal to the name of the entry point."""

    @property
    def range(self) -> tuple[float, float]:
        """Lowest and highest value it can give; infinite ends are allowed."""

    @property
    def higher_is_better(self) -> bool:
        """Whether more of it is wanted; training maximises weight x value."""

    @property
    def gamed_by(self) -> str:
        """How a policy can raise it without a better summary, for people."""

    @property
    def absent_reason(self) -> str:
        """What None means when `score` gives it, for people."""

    def score(self, batch: Sequence[RewardInput]) -> list[float | None]:
        """One value per item, in order; None when it can't be computed (never 0 instead)."""


class ReasonedValues(list[float | None]):
    """What `score` may give instead of a plain list: values, some of the absent ones with a reason of their own.

    Attributes:
        reasons: Index of a value that is None -> why; `absent_reason` stands for those without.
    """

    def __init__(self, values: Iterable[float | None] = ()) -> None:
        super().__init__(values)
        self.reasons: dict[int, str] = {}


def checked_choice(reward: str, option: str, value: object, allowed: Sequence[str]) -> str:
    """The value of an option that is one of a few words.

    Raises:
        ConfigValue: If it is not among `allowed`; the way out names the nearest.
    """
    if isinstance(value, str) and value in allowed:
        return value
    raise ConfigValue(
        f"rewards.{reward}.{option} is {value!r}; it must be one of {', '.join(allowed)}.",
        nearest(str(value), allowed),
    )
