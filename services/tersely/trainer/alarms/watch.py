"""Looks at each step's figures and raises alarms."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from tersely.config import Recipe
from tersely.trainer.alarms import lengths, policy, texts
from tersely.trainer.alarms.alarm import Alarm, Sign
from tersely.trainer.alarms.history import History
from tersely.v1 import group_pb2

Rule = Callable[[History, Recipe], list[Sign]]

ALARMS: Mapping[str, Rule] = {
    "length_at_limit": lengths.at_limit,
    "length_spread_gone": lengths.spread_gone,
    "length_far": lengths.far,
    "entropy_collapse": policy.entropy_collapse,
    "rewards_fight": policy.rewards_fight,
    "loss_of_signal": policy.loss_of_signal,
    "mismatch_high": policy.mismatch_high,
    "node_mismatch": policy.node_mismatch,
    "gradient_jump": policy.gradient_jump,
    "groups_too_old": policy.groups_too_old,
    "template_collapse": texts.template_collapse,
}
"""Every alarm by name, in the order in which a step raises them."""


class AlarmWatch:
    """Raises each alarm once when it starts, and again only after it has cleared.

    Args:
        recipe: Of the run; its [alarms] has the limits.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._history = History(recipe.alarms.window_steps)
        self._active: dict[tuple[str, str], Alarm] = {}

    @property
    def active(self) -> list[Alarm]:
        """Alarms that were raised and have not cleared."""
        return list(self._active.values())

    def observe(self, figures: Mapping[str, Any], groups: Sequence[group_pb2.ScoredGroup] = ()) -> list[Alarm]:
        """Takes the figures of a step.

        A step that was seen before means that the run was rolled back: it and all after it are forgotten first, and
        with them what is active.

        Args:
            figures: Fields of its step_finished event.
            groups: Its batch, to quote from; may be empty.

        Returns:
            The alarms that this step raises, in the order of ALARMS.
        """
        if self._history.add(figures):
            self._active.clear()
        raised = []
        for name, rule in ALARMS.items():
            signs = sorted(rule(self._history, self._recipe), key=lambda sign: sign.subject)
            for subject, grouped in groupby(signs, key=lambda sign: sign.subject):
                alarm = self._turn(name, subject, list(grouped), groups)
                if alarm is not None:
                    raised.append(alarm)
        return raised

    def roll_back(self, to_step: int) -> None:
        """Forgets all steps after one, and what is active."""
        self._history.drop_from(to_step + 1)
        self._active.clear()

    def warm_up(self, events: Iterable[Mapping[str, Any]]) -> list[Alarm]:
        """Comes to the state of a run that is taken up again.

        Args:
            events: Its event log, in order.

        Returns:
            Alarms that its steps raise and that the log does not have: the trainer died between the two, or the limits
            are others by now.
        """
        missing: list[Alarm] = []
        for event in events:
            if event.get("kind") == "step_finished":
                missing += self.observe(event)
            elif event.get("kind") == "rolled_back":
                self.roll_back(int(event["to_step"]))
            elif event.get("kind") == "alarm":
                missing = [alarm for alarm in missing if not _tells_of(event, alarm)]
        return missing

    def _turn(
        self, name: str, subject: str, signs: Sequence[Sign], groups: Sequence[group_pb2.ScoredGroup]
    ) -> Alarm | None:
        """Raises or clears one alarm; None when nothing is raised."""
        key = (name, subject)
        if key in self._active:
            if all(sign.clear for sign in signs):
                del self._active[key]
            return None
        wrong = next((sign for sign in signs if sign.wrong), None)
        if wrong is None:
            return None
        quote = texts.quote(groups) if name == "template_collapse" else ""
        self._active[key] = alarm = Alarm(
            name=name,
            step=int(self._history.last["step"]),
            message=wrong.message + quote,
            cause=wrong.cause,
            setting=wrong.setting,
            value=wrong.value,
            limit=wrong.limit,
            change=wrong.change,
        )
        return alarm


def _tells_of(event: Mapping[str, Any], alarm: Alarm) -> bool:
    """Whether an event is about an alarm; it may quote from the batch, which the event log does not have."""
    same = (event.get("name"), event.get("step")) == (alarm.name, alarm.step)
    return same and str(event.get("message", "")).startswith(alarm.message)
