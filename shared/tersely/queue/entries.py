"""What an entry of a work stream looks like, on the wire and in Python."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError

from tersely.types import GroupId
from tersely.v1 import group_pb2

SUSPECTED_POISON = "suspected_poison"
"""Error kind of a group whose leases kept expiring: it may be killing its workers."""

MALFORMED_ENTRY = "malformed_entry"
"""Error kind of an entry without the fields that a work stream needs."""

Fields = dict[Any, Any]
"""What redis-py takes as the fields of an entry (its dict type is invariant)."""


@dataclass(frozen=True, slots=True)
class Lease:
    """An entry leased to one consumer.

    Attributes:
        entry_id: Id in the stream, e.g. ``b"1795441090577-0"``; changes when the entry is added again.
        group_id: Group it carries; the only thing that tells copies.
        payload: One protobuf message.
        strikes: Failures that workers reported so far.
        expired_leases: Earlier leases that ended without a word.
    """

    entry_id: bytes
    group_id: GroupId
    payload: bytes
    strikes: int
    expired_leases: int


@dataclass(frozen=True, slots=True)
class StreamDepth:
    """Entries in a work stream.

    Attributes:
        waiting: Not yet leased by anyone.
        leased: Leased and not finished (expired leases included until somebody takes them).
    """

    waiting: int
    leased: int

    @property
    def total(self) -> int:
        """All entries in the stream."""
        return self.waiting + self.leased


def to_fields(group_id: GroupId, payload: bytes, strikes: int = 0, expired_leases: int = 0) -> Fields:
    """Fields of a new entry."""
    return {"g": group_id, "p": payload, "s": strikes, "x": expired_leases}


def to_lease(entry_id: bytes, fields: Mapping[bytes, bytes], times_delivered: int) -> Lease | None:
    """Reads an entry; None when it is not one of ours.

    Args:
        entry_id: Id in the stream.
        fields: Fields as the server sent them.
        times_delivered: Deliveries of this entry so far, this one included; each before it was a lease that expired.
    """
    try:
        return Lease(
            entry_id=entry_id,
            group_id=GroupId(fields[b"g"].decode()),
            payload=fields[b"p"],
            strikes=int(fields.get(b"s", b"0")),
            expired_leases=int(fields.get(b"x", b"0")) + max(times_delivered, 1) - 1,
        )
    except (KeyError, ValueError):
        return None


def stage_of(key: str) -> str:
    """Last part of a stream's key, e.g. ``"prompts"``."""
    return key.rpartition(":")[2]


def issue_number_of(stage: str, payload: bytes) -> int:
    """Issue number inside a payload of this stage; 0 when it can't be read."""
    try:
        if stage in ("prompts", "eval_prompts"):
            return group_pb2.PromptGroup.FromString(payload).issue_number
        if stage == "completions":
            return group_pb2.CompletionGroup.FromString(payload).prompt.issue_number
        if stage == "scored":
            return group_pb2.ScoredGroup.FromString(payload).group.prompt.issue_number
    except DecodeError:
        return 0
    return 0
