"""What an alarm says, and the signs it is raised by."""

from __future__ import annotations

from dataclasses import dataclass

CLEAR_MARGIN = 0.2
"""A figure has to come back across its limit by this share of it before its alarm can be raised again."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something a person should know about the last steps.

    Attributes:
        name: What it is called in docs/reading-the-figures.md.
        step: At whose end it was raised.
        message: What is seen, with the figures.
        cause: What it most likely comes from.
        setting: Key of the recipe to change.
        value: The figure that gave it away; None: not a finite number.
        limit: What the figure was held against; None where there is nothing to hold it against.
        change: What to do with the setting.
    """

    name: str
    step: int
    message: str
    cause: str
    setting: str
    value: float | None
    limit: float | None
    change: str


@dataclass(frozen=True, slots=True)
class Sign:
    """One figure held against its limit.

    Attributes:
        value: The figure, over the window; None: not a finite number.
        limit: The limit; None: none.
        wrong: Whether it calls for the alarm.
        clear: Whether it is far enough on the good side; between the two nothing changes.
        message: As in Alarm.
        cause: As in Alarm.
        setting: As in Alarm.
        change: As in Alarm.
        subject: What the alarm is about where one name can be raised for several things, e.g. two rewards.
    """

    value: float | None
    limit: float | None
    wrong: bool
    clear: bool
    message: str
    cause: str
    setting: str
    change: str
    subject: str = ""


def is_above(value: float, limit: float) -> bool:
    """Whether a figure that should stay low is too high."""
    return value > limit


def is_below(value: float, limit: float) -> bool:
    """Whether a figure that should stay high is too low."""
    return value < limit


def back_below(value: float, limit: float) -> bool:
    """Whether a figure that should stay low is well below its limit again."""
    return value < limit - CLEAR_MARGIN * abs(limit)


def back_above(value: float, limit: float) -> bool:
    """Whether a figure that should stay high is well above its limit again."""
    return value > limit + CLEAR_MARGIN * abs(limit)
