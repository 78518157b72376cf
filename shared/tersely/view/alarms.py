"""Alarms as text: what is seen, why, and what to change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_NOT_FACTS = ("time", "kind", "name")


def is_advice(alarm: Mapping[str, Any]) -> bool:
    """Whether it comes from the figures of the steps, with a cause and a setting; others only state facts."""
    return bool(alarm.get("setting"))


def alarm_line(alarm: Mapping[str, Any]) -> str:
    """All of an alarm in one line."""
    if not is_advice(alarm):
        facts = [f"{key} {value}" for key, value in alarm.items() if key not in _NOT_FACTS]
        return "  ".join([f"alarm {alarm.get('name', '')}", *facts])
    return f"{alarm_head(alarm)}. Likely cause: {alarm.get('cause', '')} {alarm_advice(alarm)}"


def alarm_head(alarm: Mapping[str, Any]) -> str:
    """Name, step and what is seen."""
    return f"alarm {alarm.get('name', '')} at step {alarm.get('step', '-')}: {alarm.get('message', '')}"


def alarm_advice(alarm: Mapping[str, Any]) -> str:
    """The setting and what to do with it."""
    return f"To change: {alarm.get('setting')}. {alarm.get('change') or ''}".strip()
