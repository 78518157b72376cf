"""What people decide on groups in the quarantine: asked for by the command line, done by the trainer.

A hash by group id. A field is written once by whoever asks (HSETNX), so that a group is decided on at most once, and
overwritten only by the trainer, which says what became of it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import redis
import structlog

from tersely.queue.connect import address_of, redis_errors
from tersely.queue.keys import RunKeys
from tersely.types import GroupId

log = structlog.get_logger(__name__)

REPLAY, DROP = "replay", "drop"
ASKED, DONE, REFUSED = "asked", "done", "refused"


@dataclass(frozen=True, slots=True)
class Decision:
    """A decision on one group.

    Attributes:
        group_id: The quarantined group.
        action: `replay` or `drop`.
        state: `asked`, `done` or `refused`.
        reason: Of who asked, or of the trainer that refused.
        time: When it was asked for, Unix seconds.
        issued_as: Group that its prompt was issued as again; empty: none.
    """

    group_id: GroupId
    action: str
    state: str = ASKED
    reason: str = ""
    time: float = 0.0
    issued_as: str = ""


class Decisions:
    """Decisions of one run.

    Args:
        client: From `connect`.
        keys: Of the run.
    """

    def __init__(self, client: redis.Redis, keys: RunKeys) -> None:
        self._client = client
        self._key = keys.quarantine_decisions
        self._stream = keys.quarantine
        self._address = address_of(client)

    def ask(self, decision: Decision) -> Decision | None:
        """Asks the trainer for something.

        Returns:
            The earlier decision on this group, which stays; None: there was none.

        Raises:
            QueueError.
        """
        stamped = replace(decision, time=time.time())
        with redis_errors(self._address):
            if self._client.hsetnx(self._key, decision.group_id, _dumps(stamped)):
                return None
            return _parse(decision.group_id, self._client.hget(self._key, decision.group_id))

    def read(self) -> dict[GroupId, Decision]:
        """All decisions of the run, by group.

        Raises:
            QueueError.
        """
        with redis_errors(self._address):
            found: Any = self._client.hgetall(self._key)
        ids = {GroupId(name.decode(errors="replace")): value for name, value in found.items()}
        return {group_id: _parse(group_id, value) for group_id, value in ids.items()}

    def answer(self, decision: Decision, state: str, *, reason: str | None = None, issued_as: str = "") -> None:
        """Says what became of it: the trainer's.

        Raises:
            QueueError.
        """
        said = replace(decision, state=state, reason=decision.reason if reason is None else reason, issued_as=issued_as)
        with redis_errors(self._address):
            self._client.hset(self._key, decision.group_id, _dumps(said))

    def remove_entries(self, group_id: GroupId) -> int:
        """Takes a group's entries out of the quarantine; how many there were.

        Raises:
            QueueError.
        """
        with redis_errors(self._address):
            entries: Any = self._client.xrange(self._stream)
            ids = [entry_id for entry_id, fields in entries if fields.get(b"g", b"") == group_id.encode()]
            return int(self._client.xdel(self._stream, *ids)) if ids else 0


def _dumps(decision: Decision) -> str:
    return json.dumps({name: value for name, value in asdict(decision).items() if name != "group_id"})


def _parse(group_id: GroupId, data: Any) -> Decision:
    """One that can't be read counts as refused: it must neither be done nor stop the run."""
    try:
        facts = json.loads(data)
        if isinstance(facts, Mapping) and facts.get("action") in (REPLAY, DROP):
            texts = {name: str(facts.get(name, "")) for name in ("action", "state", "reason", "issued_as")}
            return Decision(group_id, time=float(facts.get("time", 0.0)), **texts)
    except (TypeError, ValueError, OverflowError, RecursionError):
        log.warning("decision_unreadable", group_id=group_id)
    return Decision(group_id, "", REFUSED, "the decision can't be read")
