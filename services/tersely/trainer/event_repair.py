"""Events that the log proves and events.jsonl lacks, because a trainer died between the two: written again, once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from tersely.telemetry.events import EventLog, read_events
from tersely.trainer.history import Rollback
from tersely.trainer.ledger import Outcome
from tersely.trainer.recorder import rollback_facts
from tersely.types import WeightsLabel
from tersely.v1 import log_pb2

_DROPPED = {
    log_pb2.GROUP_OUTCOME_STALE: Outcome.STALE,
    log_pb2.GROUP_OUTCOME_NO_SIGNAL: Outcome.NO_SIGNAL,
    log_pb2.GROUP_OUTCOME_QUARANTINED: Outcome.QUARANTINED,
}
_NAMED_BY = {
    "group_issued": ("group_id",),
    **{f"group_{outcome}": ("group_id",) for outcome in _DROPPED.values()},
    "version_published": ("step", "policy_version"),
    "rolled_back": ("step", "policy_version"),
}


def repair_events(records: Iterable[log_pb2.LogRecord], events: EventLog) -> int:
    """Writes what is missing and returns how many events that were; they carry `repaired` and the time of repair.

    Args:
        records: The run's write-ahead log, oldest first.
        events: Its event log, which nobody else writes group events to meanwhile.
    """
    known = {_key(event["kind"], event) for event in read_events(events.path) if event["kind"] in _NAMED_BY}
    written = 0
    for kind, facts in _proved(records):
        key = _key(kind, facts)
        if key not in known:
            known.add(key)
            events.write(kind, **facts, repaired=True)
            written += 1
    return written


def _key(kind: str, facts: dict[str, Any]) -> tuple[Any, ...]:
    return kind, *(facts.get(name) for name in _NAMED_BY[kind])


def _proved(records: Iterable[log_pb2.LogRecord]) -> Iterator[tuple[str, dict[str, Any]]]:
    numbers: dict[str, int] = {}
    for record in records:
        kind = record.WhichOneof("record")
        if kind == "group_issued":
            issued = record.group_issued
            numbers[issued.group_id] = issued.issue_number
            facts = {"group_id": issued.group_id, "issue_number": issued.issue_number, "prompt_id": issued.prompt_id}
            yield "group_issued", {**facts, "replay_of": issued.replay_of} if issued.replay_of else facts
        elif kind == "group_dropped":
            dropped = record.group_dropped
            if dropped.group_id in numbers:
                yield (
                    f"group_{_DROPPED[dropped.outcome]}",
                    {
                        "group_id": dropped.group_id,
                        "issue_number": numbers[dropped.group_id],
                        "reason": dropped.reason,
                    },
                )
        elif kind == "version_committed":
            committed = record.version_committed
            yield "version_published", {"step": committed.step, **_label(committed.weights)}
        elif kind == "rolled_back":
            rolled = record.rolled_back
            label = WeightsLabel.from_proto(rolled.weights)
            yield "rolled_back", rollback_facts(Rollback(rolled.step, rolled.to_step, label, rolled.reason))


def _label(weights: Any) -> dict[str, Any]:
    label = WeightsLabel.from_proto(weights)
    return {"policy_version": label.policy_version, "weights_sha256": label.weights_sha256}
