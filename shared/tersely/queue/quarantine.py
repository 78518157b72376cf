"""The stream of groups set aside: written by any consumer, read by the trainer and by people."""

from __future__ import annotations

from typing import Any

import redis
import structlog
from google.protobuf.message import DecodeError

from tersely.queue.connect import address_of, redis_errors
from tersely.queue.entries import Fields, Lease, issue_number_of
from tersely.v1 import group_pb2

_PAGE = 100
log = structlog.get_logger(__name__)


def to_quarantine_fields(lease: Lease, stage: str, error_kind: str, message: str, strikes: int) -> Fields:
    """Fields of a quarantine entry."""
    quarantined = group_pb2.QuarantinedGroup(
        group_id=lease.group_id,
        issue_number=issue_number_of(stage, lease.payload),
        stage=stage,
        entry=lease.payload,
        error_kind=error_kind,
        error_message=message,
        strikes=strikes,
        expired_leases=lease.expired_leases,
    )
    return {"g": lease.group_id, "p": quarantined.SerializeToString()}


class QuarantineReader:
    """Reads the quarantine from where it last stopped. A group can appear twice: tell copies by group_id.

    Args:
        client: From `connect`.
        key: Stream of QuarantinedGroup.
        after: Id of the last entry already seen; `.after` moves on with each read.
    """

    def __init__(self, client: redis.Redis, key: str, after: bytes = b"0") -> None:
        self.after = after
        self.unreadable = 0
        self._client = client
        self._key = key
        self._address = address_of(client)

    def read(self) -> list[group_pb2.QuarantinedGroup]:
        """Everything new, oldest first; never waits.

        Raises:
            RedisUnreachable, RedisAuth.
        """
        found = []
        while True:
            with redis_errors(self._address):
                page: Any = self._client.xrange(self._key, min=b"(" + self.after, max="+", count=_PAGE)
            for entry_id, fields in page:
                self.after = entry_id
                if b"p" in fields:
                    try:
                        found.append(group_pb2.QuarantinedGroup.FromString(fields[b"p"]))
                    except DecodeError:  # any worker may write here
                        self.unreadable += 1
                        log.warning("quarantine_entry_unreadable", entry_id=entry_id, bytes=len(fields[b"p"]))
            if len(page) < _PAGE:
                return found
