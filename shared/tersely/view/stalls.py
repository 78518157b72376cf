"""A stall as text: which part holds the step up, why, and what to do; and the one that the trainer can't tell of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tersely.view import figures


def stall_head(stall: Mapping[str, Any]) -> str:
    """Name, step, part and what is seen."""
    since = stall.get("stalled_seconds")
    lasting = f", for {figures.duration(since)}" if isinstance(since, int | float) else ""
    return (
        f"stall {stall.get('name', '')} at step {stall.get('step', '-')}{lasting}: {stall.get('part', '')}."
        f" {stall.get('message', '')}"
    )


def stall_advice(stall: Mapping[str, Any]) -> str:
    """Why, and what to do."""
    return f"Why: {stall.get('cause', '')} To do: {stall.get('change', '')}"


def stall_line(stall: Mapping[str, Any]) -> str:
    """All of it in one line."""
    return f"{stall_head(stall)} {stall_advice(stall)}"


def trainer_silent(status: Mapping[str, Any], age_seconds: float) -> dict[str, Any]:
    """What holds a run up whose trainer is there, but has written no status for a while.

    Args:
        status: The last one.
        age_seconds: How old it is.
    """
    return {
        "name": "trainer_silent",
        "part": "trainer",
        "node_id": None,
        "step": int(status.get("step") or 0) + 1,
        "phase": None,
        "message": f"The trainer's process is there, but has written no status for {figures.duration(age_seconds)}.",
        "cause": "It was stopped (SIGSTOP, a debugger), its machine sleeps or is starved, or the disk does not answer.",
        "change": "Let it go on (SIGCONT), or end it and start it again with --resume.",
        "late_seconds": round(age_seconds, 1),
        "limit_seconds": None,
        "stalled_seconds": round(age_seconds, 1),
    }
