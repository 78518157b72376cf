"""One work stream as seen by one consumer: leases, hand-over, strikes.

The guarantee and the key space are stated in the package's docstring.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import redis
import structlog
from redis import exceptions as faults

from tersely.errors import LeaseLost
from tersely.queue.connect import address_of, redis_errors, server_words
from tersely.queue.entries import (
    MALFORMED_ENTRY,
    SUSPECTED_POISON,
    Fields,
    Lease,
    StreamDepth,
    stage_of,
    to_fields,
    to_lease,
)
from tersely.queue.quarantine import to_quarantine_fields
from tersely.types import GroupId

log = structlog.get_logger(__name__)
RETURNED = "returned"
"""Consumer that holds what nodes without the right to add have let go; it is free for everybody at once."""
T = TypeVar("T")
RawEntry = tuple[bytes, dict[bytes, bytes]]


class WorkStream:
    """A stream with one consumer group, for one consumer. Safe to use from several threads.

    Every method raises RedisUnreachable, RedisAuth or RedisOutOfMemory where the server fails it; nothing has then been
    half-done, though it may have been done (a lost reply). A wiped server is met by making stream and group anew.

    Args:
        client: From `connect` (binary responses, RESP2).
        key: Stream.
        group: Consumer group, e.g. "rollout".
        consumer: Name of this consumer, unique per process: its node id.
        lease_seconds: A lease not renewed for this long may be taken by others, and by this consumer's own
            next `lease`.
        max_strikes: Reported failures before a group goes to quarantine.
        max_expired_leases: Expired leases before a group goes to quarantine as suspected poison.
        quarantine_key: Stream of QuarantinedGroup.
        adds_back: Whether this consumer may add to the stream that it takes from. Where it may not, as a node with a
            login of its own, a group that comes back stays in its place, and a strike counts as so many expired leases
            that the last one sends the group to quarantine as well.
    """

    def __init__(
        self,
        client: redis.Redis,
        key: str,
        group: str,
        consumer: str,
        *,
        lease_seconds: float,
        max_strikes: int = 3,
        max_expired_leases: int = 10,
        quarantine_key: str,
        adds_back: bool = True,
    ) -> None:
        self.key = key
        self.lease_seconds = lease_seconds
        self._client = client
        self._group = group
        self._consumer = consumer
        self._max_strikes = max_strikes
        self._max_expired_leases = max_expired_leases
        self._quarantine_key = quarantine_key
        self._adds_back = adds_back
        self._strike_weight = math.ceil(max_expired_leases / max_strikes)
        self._address = address_of(client)
        reply_limit = client.connection_pool.connection_kwargs.get("socket_timeout") or 2.0
        # A block beyond the socket timeout fails after silent retries; short ones also notice expired leases of others.
        self._longest_block_seconds = max(0.02, min(1.0, lease_seconds / 2, reply_limit / 2))
        self._reclaim_seconds = min(0.5, lease_seconds / 8)
        self._reclaimed_at = -math.inf

    def create(self) -> None:
        """Makes stream and group where they are missing; the group begins at the stream's first entry."""
        self._run(self._create)

    def add(self, group_id: GroupId, payload: bytes) -> None:
        """Appends a group."""
        self._run(lambda: self._client.xadd(self.key, to_fields(group_id, payload)))

    def add_many(self, groups: Sequence[tuple[GroupId, bytes]]) -> None:
        """Appends groups in their order, all or none, in one round trip."""

        def append() -> None:
            pipe = self._client.pipeline(transaction=True)
            for group_id, payload in groups:
                pipe.xadd(self.key, to_fields(group_id, payload))
            pipe.execute()

        if groups:
            self._run(append)

    def lease(self, count: int, block_seconds: float) -> list[Lease]:
        """Leases entries: expired ones of others (looked for twice a second, and when nothing is new), then new ones.

        Entries with too many expired leases go to quarantine on the way.

        Args:
            count: At most so many, >= 1.
            block_seconds: How long to wait for the first one; 0 doesn't wait.

        Returns:
            At least one lease, or none when the time is over.
        """
        deadline = time.monotonic() + block_seconds
        while True:
            due = time.monotonic() - self._reclaimed_at >= self._reclaim_seconds
            leases = self._run(lambda: self._reclaim(count)) if due else []
            if len(leases) < count:
                left = 0.0 if leases else deadline - time.monotonic()
                room, wait = count - len(leases), min(left, self._longest_block_seconds)
                leases += self._run(lambda room=room, wait=wait: self._read_new(room, wait))  # type: ignore[misc]
            if leases or (due and time.monotonic() >= deadline):
                return leases
            if time.monotonic() >= deadline:
                self._reclaimed_at = -math.inf  # nothing is new: look among the expired ones before saying so

    def pending_of_consumer(self) -> list[Lease]:
        """What a consumer of this name still holds, e.g. from before its restart, with the leases renewed.

        Counts as an expired lease for each: the holder died on it.
        """

        def read() -> list[Lease]:
            answer: Any = self._client.xreadgroup(self._group, self._consumer, {self.key: "0"})
            raw: list[RawEntry] = answer[0][1] if answer else []
            deleted = [entry_id for entry_id, fields in raw if not fields]
            if deleted:
                self._client.xack(self.key, self._group, *deleted)
            return self._admit_again([(entry_id, fields) for entry_id, fields in raw if fields])

        return self._run(read)

    def renew(self, leases: Sequence[Lease]) -> list[Lease]:
        """Starts the lease time anew.

        An entry that another consumer takes between check and claim is taken back; `forward` then refuses the other.

        Returns:
            Those still held; the others have gone to another consumer or are finished.
        """

        def claim() -> list[Lease]:
            held = self._held(leases)
            if held:
                ids: list[Any] = [lease.entry_id for lease in held]
                self._client.xclaim(self.key, self._group, self._consumer, 0, ids, justid=True)
            return held

        return self._run(claim)

    def give_back(self, lease: Lease) -> None:
        """Puts an unfinished group back for others at once, without a strike. Nothing happens if the lease is lost."""
        if not self._adds_back:
            self._run(lambda: self._let_go(lease, 0))
        elif self._run(lambda: self._held([lease])):
            fields = to_fields(lease.group_id, lease.payload, lease.strikes, lease.expired_leases)
            self._run(lambda: self._move(lease.entry_id, self.key, fields))

    def forward(self, lease: Lease, to_key: str, payload: bytes) -> None:
        """Adds the finished group to the next stream and removes it from this one, in one MULTI.

        The check that the lease is still ours and the MULTI are two round trips; see the package's docstring for why
        the gap is harmless.

        Raises:
            LeaseLost: The entry is no longer ours; nothing was added.
        """
        if self.forward_many([(lease, payload)], to_key):
            raise LeaseLost(
                f"The lease on group {lease.group_id} in {self.key} was lost; its result is not sent on.",
                "Nothing to do: the group is with another consumer. If this is frequent, raise queue.lease_seconds.",
            )

    def forward_many(self, finished: Sequence[tuple[Lease, bytes]], to_key: str) -> list[Lease]:
        """Forwards groups in their order, in two round trips for all and one MULTI; see `forward`.

        Returns:
            Leases that were lost; nothing was added for them.
        """
        held = {lease.entry_id for lease in self._run(lambda: self._held([lease for lease, _ in finished]))}
        moves = [
            (lease.entry_id, to_fields(lease.group_id, payload))
            for lease, payload in finished
            if lease.entry_id in held
        ]
        if moves:
            self._run(lambda: self._move_all(moves, to_key))
        return [lease for lease, _ in finished if lease.entry_id not in held]

    def fail(self, lease: Lease, error_kind: str, message: str) -> bool:
        """Reports a failure: a strike, and the group waits again; with the last strike it goes to quarantine.

        Nothing happens if the lease is lost.

        Args:
            lease: What failed.
            error_kind: Snake-case kind, e.g. of a TerselyError.
            message: For people.

        Returns:
            Whether the group is now in quarantine.
        """
        if not self._run(lambda: self._held([lease])):
            return False
        strikes = lease.strikes + 1
        last = strikes >= self._max_strikes
        if not self._adds_back:
            last = lease.expired_leases + self._strike_weight >= self._max_expired_leases
        if last:
            self._run(lambda: self._quarantine(lease, error_kind, message, strikes))
            return True
        if not self._adds_back:
            self._run(lambda: self._let_go(lease, self._strike_weight))
            return False
        fields = to_fields(lease.group_id, lease.payload, strikes, lease.expired_leases)
        self._run(lambda: self._move(lease.entry_id, self.key, fields))
        return False

    def ack(self, leases: Sequence[Lease]) -> None:
        """Removes finished entries for good and unchecked: for the end of the ring, after its own log.

        Works on a server at its maxmemory too, and so makes room there.
        """
        if not leases:
            return

        def remove() -> None:
            ids = [lease.entry_id for lease in leases]
            # No MULTI: a full server refuses every command in one. Deleted but not acked heals itself when it expires.
            pipe = self._client.pipeline(transaction=False)
            pipe.xdel(self.key, *ids)
            pipe.xack(self.key, self._group, *ids)
            pipe.execute()

        self._run(remove)

    def depth(self) -> StreamDepth:
        """Counts entries. The total is exact; an entry leased in the same moment may count on either side."""

        def count() -> StreamDepth:
            pipe = self._client.pipeline(transaction=False)
            pipe.xpending(self.key, self._group)
            pipe.xlen(self.key)
            pending, length = pipe.execute()
            leased = min(int(pending["pending"]), int(length))
            return StreamDepth(waiting=int(length) - leased, leased=leased)

        return self._run(count)

    def _run(self, action: Callable[[], T]) -> T:
        with redis_errors(self._address):
            try:
                return action()
            except faults.ResponseError as error:
                # NOGROUP: gone before the command; UNBLOCKED: gone while it waited.
                if not server_words(error).startswith(("NOGROUP", "UNBLOCKED")):
                    raise
                log.warning("stream_group_missing", key=self.key, group=self._group, what="made anew")
            self._create()
            return action()

    def _create(self) -> None:
        try:
            self._client.xgroup_create(self.key, self._group, id="0", mkstream=True)
        except faults.ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise

    def _reclaim(self, count: int) -> list[Lease]:
        self._reclaimed_at = time.monotonic()
        idle = int(self.lease_seconds * 1000)
        leases: list[Lease] = []
        cursor: Any = "0-0"
        while len(leases) < count:
            cursor, raw, *_ = self._client.xautoclaim(
                self.key, self._group, self._consumer, idle, start_id=cursor, count=count - len(leases)
            )
            leases += self._admit_again(raw)
            if cursor == b"0-0":
                break
        return leases

    def _read_new(self, count: int, wait_seconds: float) -> list[Lease]:
        block = max(1, int(wait_seconds * 1000)) if wait_seconds > 0 else None
        answer: Any = self._client.xreadgroup(self._group, self._consumer, {self.key: ">"}, count=count, block=block)
        raw: list[RawEntry] = answer[0][1] if answer else []
        return self._admit(raw, [1] * len(raw))

    def _admit_again(self, raw: list[RawEntry]) -> list[Lease]:
        if not raw:
            return []
        pipe = self._client.pipeline(transaction=False)
        for entry_id, _ in raw:
            pipe.xpending_range(self.key, self._group, entry_id, entry_id, 1)
        delivered = [answer[0]["times_delivered"] if answer else 1 for answer in pipe.execute()]
        return self._admit(raw, delivered)

    def _admit(self, raw: list[RawEntry], delivered: list[int]) -> list[Lease]:
        admitted = []
        for (entry_id, fields), times in zip(raw, delivered, strict=True):
            lease = to_lease(entry_id, fields, times)
            if lease is None:
                broken = Lease(entry_id, GroupId(""), fields.get(b"p", b""), 0, times - 1)
                self._quarantine(broken, MALFORMED_ENTRY, f"Entry {entry_id.decode()} has fields {sorted(fields)}.", 0)
            elif lease.expired_leases >= self._max_expired_leases:
                message = f"{lease.expired_leases} leases expired without a word; the group may be killing its workers."
                self._quarantine(lease, SUSPECTED_POISON, message, lease.strikes)
            else:
                admitted.append(lease)
        return admitted

    def _held(self, leases: Sequence[Lease]) -> list[Lease]:
        if not leases:
            return []
        pipe = self._client.pipeline(transaction=False)
        for lease in leases:
            pipe.xpending_range(self.key, self._group, lease.entry_id, lease.entry_id, 1, consumername=self._consumer)
        return [lease for lease, answer in zip(leases, pipe.execute(), strict=True) if answer]

    def _let_go(self, lease: Lease, expired_leases: int) -> None:
        """Lets the lease count as expired from now on, and `expired_leases` more than there were; not if it is lost."""
        held: Any = self._client.xpending_range(
            self.key, self._group, lease.entry_id, lease.entry_id, 1, consumername=self._consumer
        )
        if held:
            idle, taken = int(self.lease_seconds * 1000) + 1, held[0]["times_delivered"] - 1 + expired_leases
            ids: list[Any] = [lease.entry_id]
            # To a consumer that nobody is, so that it is not held here any more. Taking it counts once again.
            self._client.xclaim(self.key, self._group, RETURNED, 0, ids, idle=idle, retrycount=taken, justid=True)

    def _move(self, entry_id: bytes, to_key: str, fields: Fields) -> None:
        self._move_all([(entry_id, fields)], to_key)

    def _move_all(self, moves: Sequence[tuple[bytes, Fields]], to_key: str) -> None:
        pipe = self._client.pipeline(transaction=True)
        for _, fields in moves:
            pipe.xadd(to_key, fields)
        ids = [entry_id for entry_id, _ in moves]
        pipe.xack(self.key, self._group, *ids)
        pipe.xdel(self.key, *ids)
        pipe.execute()

    def _quarantine(self, lease: Lease, error_kind: str, message: str, strikes: int) -> None:
        stage = stage_of(self.key)
        self._move(
            lease.entry_id, self._quarantine_key, to_quarantine_fields(lease, stage, error_kind, message, strikes)
        )
        log.warning("group_quarantined", group_id=lease.group_id, stage=stage, error_kind=error_kind, message=message)
