"""Groups of the quarantine that people have decided on: tried again as a new issue, or dropped for good.

That a group is tried again at most once is in the log, whatever the queue server forgets or a killed trainer leaves.
"""

from __future__ import annotations

import structlog

from tersely.queue.decisions import ASKED, DONE, REFUSED, REPLAY, Decision, Decisions
from tersely.telemetry.events import EventLog
from tersely.trainer.ledger import Issue, Ledger
from tersely.types import GroupId

log = structlog.get_logger(__name__)


class SecondTries:
    """Reads decisions and hands out what is to be issued again.

    Args:
        decisions: Of the run.
        ledger: The books.
        events: Takes what was decided.
    """

    def __init__(self, decisions: Decisions, ledger: Ledger, events: EventLog) -> None:
        self._decisions = decisions
        self._ledger = ledger
        self._events = events
        self._waiting: dict[GroupId, Decision] = {}

    def look(self) -> None:
        """Takes up new decisions, and answers those that are done.

        Raises:
            QueueError: The server is away; what was taken up stays.
        """
        for group_id, decision in self._decisions.read().items():
            if decision.state != ASKED or group_id in self._ledger.open:
                continue  # one that is still open may have a copy that does well
            if decision.action == REPLAY:
                self._look_at_replay(group_id, decision)
            else:
                self._drop(group_id, decision)

    def next(self) -> Issue | None:
        """A quarantined group whose prompt is to be issued again; it must be booked before the next call."""
        for group_id in list(self._waiting):
            issue = self._ledger.quarantined.get(group_id)
            if issue is not None and group_id not in self._ledger.replays:
                return issue
            del self._waiting[group_id]
        return None

    def _look_at_replay(self, group_id: GroupId, decision: Decision) -> None:
        if (again := self._ledger.replays.get(group_id)) is not None:
            self._waiting.pop(group_id, None)
            self._decisions.answer(decision, DONE, issued_as=again)
        elif group_id in self._ledger.quarantined:
            self._waiting[group_id] = decision
        else:
            self._refuse(group_id, decision)

    def _drop(self, group_id: GroupId, decision: Decision) -> None:
        # The entry last: without it a trainer that is killed here has nothing to go by.
        self._events.write("quarantine_dropped", group_id=group_id, reason=decision.reason)
        self._decisions.answer(decision, DONE)
        self._decisions.remove_entries(group_id)
        log.info("quarantined group dropped", group_id=group_id, reason=decision.reason)

    def _refuse(self, group_id: GroupId, decision: Decision) -> None:
        outcome = self._ledger.outcome(group_id)
        reason = f"the group is {outcome}" if outcome else "it is no training group of this run"
        self._events.write("quarantine_refused", group_id=group_id, action=decision.action, reason=reason)
        self._decisions.answer(decision, REFUSED, reason=reason)
