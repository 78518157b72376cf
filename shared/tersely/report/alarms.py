"""The page's section on alarms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from tersely.view.alarms import is_advice

SHOWN = 20
"""Alarms shown in full; the others are counted."""


def raised(events: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The alarms in an event log."""
    return [event for event in events if event.get("kind") == "alarm"]


def alarm_steps(events: Sequence[Mapping[str, Any]]) -> list[float]:
    """Steps at which the figures raised an alarm, each once."""
    steps = (alarm.get("step") for alarm in raised(events) if is_advice(alarm))
    return sorted({float(step) for step in steps if isinstance(step, int | float)})


def alarm_section(events: Sequence[Mapping[str, Any]]) -> str:
    """All alarms of a run; empty when there were none."""
    alarms = raised(events)
    if not alarms:
        return ""
    advice = [alarm for alarm in alarms if is_advice(alarm)]
    parts = ["<h2>Alarms</h2>", *map(_card, advice[:SHOWN])]
    if len(advice) > SHOWN:
        parts.append(f"<p class='muted'>And {len(advice) - SHOWN} more, in events.jsonl.</p>")
    others: dict[str, list[Mapping[str, Any]]] = {}
    for alarm in alarms:
        if not is_advice(alarm):
            others.setdefault(str(alarm.get("name", "")), []).append(alarm)
    for name, same in others.items():
        steps = [str(alarm["step"]) for alarm in same if alarm.get("step") is not None]
        where = f" at step {steps[0]}" if len(steps) == 1 else f" from step {steps[0]} to {steps[-1]}" if steps else ""
        times = "once" if len(same) == 1 else f"{len(same)} times"
        parts.append(f"<p><code>{_text(name)}</code> <span class='muted'>{times}{_text(where)}</span></p>")
    return "".join(parts)


def _card(alarm: Mapping[str, Any]) -> str:
    return (
        f"<section class='card alarm'><h3>{_text(alarm.get('name'))} <span>step {_text(alarm.get('step'))}</span></h3>"
        f"<p>{_sentence(alarm.get('message'))}</p>"
        f"<p><b>Likely cause.</b> {_text(alarm.get('cause'))}</p>"
        f"<p><b>To change.</b> <code>{_text(alarm.get('setting'))}</code>. {_text(alarm.get('change'))}</p></section>"
    )


def _sentence(value: object) -> str:
    text = "" if value is None else str(value)
    return escape(f"{text[:1].upper()}{text[1:]}.", quote=True)


def _text(value: object) -> str:
    return escape("" if value is None else str(value), quote=True)
