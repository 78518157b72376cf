"""The run's books as the world sees them: decisions from the ledger, what is in flight counted from the streams."""

from __future__ import annotations

from collections.abc import Callable, Collection

import structlog

from tersely.telemetry.events import EventLog
from tersely.trainer.ledger import Ledger
from tersely.trainer.ring import Ring
from tersely.types import GroupId

log = structlog.get_logger(__name__)

_TRIES = 5


def balanced(counts: dict[str, int]) -> bool:
    """Whether issued = in_flight + trained + stale + no_signal + quarantined."""
    return counts["issued"] == sum(value for key, value in counts.items() if key != "issued")


class Books:
    """Reads the books while groups move, and raises an alarm when they do not add up for good.

    Args:
        ledger: Decisions.
        ring: Streams.
        events: Where an alarm goes.
    """

    def __init__(self, ledger: Ledger, ring: Ring, events: EventLog) -> None:
        self._ledger = ledger
        self._ring = ring
        self._events = events
        self._off = 0
        self.accepted: Callable[[], Collection[GroupId]] = tuple
        """Groups that the trainer holds for a batch; a wiped server may have lost their entries."""

    def duplicates(self) -> int:
        """Second copies of groups that came in and were not used."""
        return self._ledger.duplicates

    def read(self) -> dict[str, int]:
        """The counts. Streams and ledger are read one after the other, so a moving group can need a second look.

        Raises:
            QueueError: The server is away.
        """
        for _ in range(_TRIES):
            seen = self._ring.training_groups_in_streams() | set(self.accepted())
            in_flight = sum(1 for group_id in seen if group_id in self._ledger.open)
            counts = self._ledger.counts(in_flight)
            if balanced(counts):
                self._off = 0
                return counts
        self._off += 1
        if self._off == 2:  # once could be a group between a lost and a new entry
            log.warning("the books do not add up", **counts)
            self._events.write("alarm", name="books_differ", **counts)
        return counts
