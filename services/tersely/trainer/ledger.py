"""The books of a run: what was issued, what became of it. The trainer alone decides, and this is where.

    issued = in_flight + trained + stale + no_signal + quarantined

`open` holds the groups whose fate is not decided. What is *in flight* is counted from the streams and held against the
ledger in books.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from enum import StrEnum

from tersely.types import GroupId, IssueNumber


class Outcome(StrEnum):
    """How a group ended."""

    TRAINED = "trained"
    STALE = "stale"
    NO_SIGNAL = "no_signal"
    QUARANTINED = "quarantined"


@dataclass(frozen=True, slots=True)
class Issue:
    """One issued group."""

    group_id: GroupId
    issue_number: IssueNumber
    prompt_id: str
    replay_of: str = ""
    """Quarantined group whose prompt is tried again; empty: none."""


class Ledger:
    """Issues and outcomes of one run. The training loop owns it; other threads may only read `counts`."""

    def __init__(self) -> None:
        self._open: dict[GroupId, Issue] = {}
        self._outcomes: dict[GroupId, Outcome] = {}
        self._quarantined: dict[GroupId, Issue] = {}
        self._replays: dict[GroupId, GroupId] = {}
        # Kept beside the outcomes, because the status thread reads them while the loop writes.
        self._totals = dict.fromkeys((outcome.value for outcome in Outcome), 0)
        self._next_issue = 0
        self.duplicates = 0

    @property
    def next_issue_number(self) -> IssueNumber:
        """Number of the next issue; the cursor into the data."""
        return IssueNumber(self._next_issue)

    @property
    def open(self) -> Mapping[GroupId, Issue]:
        """Groups issued whose outcome is not decided, in the order of their issue."""
        return self._open

    @property
    def quarantined(self) -> Mapping[GroupId, Issue]:
        """Groups that ended in the quarantine."""
        return self._quarantined

    @property
    def replays(self) -> Mapping[GroupId, GroupId]:
        """By quarantined group, as which group its prompt was tried again."""
        return self._replays

    def record_issue(self, issue: Issue) -> None:
        """Books an issue; numbers must come without a gap.

        Raises:
            ValueError: when the number is not the next one: a fault of ours, never of the data.
        """
        if issue.issue_number != self._next_issue:
            raise ValueError(f"issue {issue.issue_number} booked, {self._next_issue} expected")
        self._open[issue.group_id] = issue
        if issue.replay_of:
            self._replays[GroupId(issue.replay_of)] = issue.group_id
        self._next_issue += 1

    def record_outcome(self, group_id: GroupId, outcome: Outcome) -> bool:
        """Books how a group ended; False (and nothing booked) when it is unknown or has an outcome already."""
        if group_id not in self._open:
            return False
        issue = self._open.pop(group_id)
        if outcome is Outcome.QUARANTINED:
            self._quarantined[group_id] = issue
        self._outcomes[group_id] = outcome
        self._totals[outcome.value] += 1
        return True

    def outcome(self, group_id: GroupId) -> Outcome | None:
        """How a group ended, if it did."""
        return self._outcomes.get(group_id)

    def counts(self, in_flight: int) -> dict[str, int]:
        """The books with `in_flight` as counted from the streams."""
        return {"issued": self._next_issue, **self._totals, "in_flight": in_flight}

    def missing(self, in_streams: Set[GroupId]) -> list[GroupId]:
        """Open groups that are in no stream."""
        return [group_id for group_id in self._open if group_id not in in_streams]
