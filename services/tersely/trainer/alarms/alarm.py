"""What an alarm says, and the signs it is raised by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict, Unpack

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


class Words(TypedDict):
    """What a sign says; as in Alarm."""

    message: str
    cause: str
    setting: str
    change: str


def too_high(
    value: float, limit: float, *, excused: bool = False, over: bool = False, subject: str = "", **words: Unpack[Words]
) -> Sign:
    """A figure that should stay low.

    Args:
        value: The figure.
        limit: What it should not be above.
        excused: It calls for no alarm even if it is.
        over: The alarm clears even if it is not well below the limit again.
        subject: As in Sign.
        **words: What to say.
    """
    back = value < limit - CLEAR_MARGIN * abs(limit)
    return Sign(value, limit, wrong=value > limit and not excused, clear=back or over, subject=subject, **words)


def too_low(
    value: float, limit: float, *, excused: bool = False, over: bool = False, subject: str = "", **words: Unpack[Words]
) -> Sign:
    """A figure that should stay high; arguments as for too_high."""
    back = value > limit + CLEAR_MARGIN * abs(limit)
    return Sign(value, limit, wrong=value < limit and not excused, clear=back or over, subject=subject, **words)
