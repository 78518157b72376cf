"""What the watchdog says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

NAMES = (
    "redis_unreachable",
    "redis_refuses_writes",
    "disk_full",
    "no_worker",
    "no_scorer",
    "not_leasing",
    "worker_stuck",
    "dead_leases",
    "fetch_stuck",
    "worker_behind",
    "generation_slow",
    "scorer_stuck",
    "scorer_behind",
    "judge_breaker_open",
    "rewards_absent",
    "no_signal",
    "groups_fail",
    "groups_missing",
    "evaluation_holds",
    "learner_stuck",
    "learner_slow",
    "writing_slow",
    "clock_jumped",
    "unexplained",
)
"""Every name that a finding can have; docs/operations.md says of each what it comes from."""

SLOW = frozenset({"generation_slow", "scorer_behind", "learner_slow", "writing_slow", "evaluation_holds"})
"""Things go on, but slower than they did: that becomes part of the history, so it is said a few times and no more."""

SURE = frozenset({"redis_unreachable", "redis_refuses_writes"})
"""Seen to fail for a while, each time a look has waited for it: said at once."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The part that holds a step up, and why.

    Attributes:
        name: One of `NAMES`.
        part: Which part, for people: "rollout rollout-1a2b on mac2", "redis", "learner".
        message: What is seen.
        cause: What that most likely comes from.
        change: What to do.
        node_id: Of the node that it is about; empty: no single one.
        step: The step that is held up.
        phase: What the trainer is at.
        seconds: How long the phase has taken so far, or since something last came back, by which it is late.
        limit_seconds: How long it may take by the run's own history.
    """

    name: str
    part: str
    message: str
    cause: str
    change: str
    node_id: str = ""
    step: int = 0
    phase: str = ""
    seconds: float = 0.0
    limit_seconds: float = 0.0

    def shown(self) -> dict[str, Any]:
        """As in status.json and the event log."""
        return {
            "name": self.name,
            "part": self.part,
            "node_id": self.node_id or None,
            "step": self.step,
            "phase": self.phase,
            "message": self.message,
            "cause": self.cause,
            "change": self.change,
            "late_seconds": round(self.seconds, 1),
            "limit_seconds": round(self.limit_seconds, 1),
        }
