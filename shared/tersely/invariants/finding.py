"""What a check found."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

HOLDS, BROKEN, NOT_RECORDED = "holds", "broken", "not_recorded"


@dataclass(frozen=True, slots=True)
class Breach:
    """One place where an invariant does not hold.

    Attributes:
        where: File and line, e.g. "events.jsonl:12"; in the log the number of the record, e.g. "log/run.wal:7".
        meaning: What is wrong there, for people.
    """

    where: str
    meaning: str


@dataclass(slots=True)
class Finding:
    """An invariant, and what became of it.

    Attributes:
        name: Stable name, e.g. "conservation".
        what: The invariant in words.
        unit: What `checked` counts.
        checked: How many of them were looked at.
        recorded: Whether the run has written down what the check needs.
        notes: What else people should know.
        breaches: Where it does not hold.
    """

    name: str
    what: str
    unit: str
    checked: int = 0
    recorded: bool = True
    notes: list[str] = field(default_factory=list)
    breaches: list[Breach] = field(default_factory=list)

    @property
    def state(self) -> str:
        """`holds`, `broken`, or `not_recorded`."""
        if self.breaches:
            return BROKEN
        return HOLDS if self.recorded else NOT_RECORDED

    def breach(self, where: str, meaning: str) -> None:
        """Notes a breach."""
        self.breaches.append(Breach(where, meaning))

    def not_recorded(self, why: str) -> Finding:
        """Says that this run can't tell, and why."""
        self.recorded = False
        self.notes.append(why)
        return self

    def to_json(self) -> dict[str, Any]:
        """As `tersely invariants --json` shows it."""
        return {
            "name": self.name,
            "what": self.what,
            "state": self.state,
            "checked": self.checked,
            "unit": self.unit,
            "notes": self.notes,
            "breaches": [asdict(breach) for breach in self.breaches],
        }
