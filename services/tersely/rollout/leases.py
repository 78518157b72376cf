"""The leases a worker holds: taken, renewed, and each ended in one of four ways."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import structlog

from tersely.errors import QueueError, RedisOutOfMemory, RedisUnreachable
from tersely.queue import Lease, LeaseKeeper, WorkStream

_log = structlog.get_logger(__name__)
T = TypeVar("T")


class LeaseDesk:
    """A lease is held from XREADGROUP until its group is handed on, struck, given back, or found lost.

    Args:
        prompts: Stream to lease from; each stream has a desk of its own.
        completions_key: Stream to hand on to.
        keeper: Renews leases; running.
        stopping: Set to drain; ends every waiting.
        redis_patience_seconds: How long one command is tried again while Redis does not answer or is full.
        pause_seconds: First pause between tries; doubles up to ten times as much.
    """

    def __init__(
        self,
        prompts: WorkStream,
        completions_key: str,
        keeper: LeaseKeeper,
        stopping: threading.Event,
        redis_patience_seconds: float = 30.0,
        pause_seconds: float = 0.5,
    ) -> None:
        self._prompts = prompts
        self._completions_key = completions_key
        self._keeper = keeper
        self._stopping = stopping
        self._redis_patience = redis_patience_seconds
        self._pause = pause_seconds
        self._held: dict[bytes, Lease] = {}
        self.lost_count = 0
        self.last_error = ""

    @property
    def held(self) -> int:
        """Leases held now."""
        return len(self._held)

    def take(self, count: int, block_seconds: float, *, patient: bool = True) -> list[Lease] | None:
        """Leases up to `count` groups, waiting so long for the first one.

        Args:
            count: >= 1.
            block_seconds: 0 does not wait.
            patient: Try again while Redis does not answer or is full.

        Returns:
            None: the server did not answer, and was not to be waited for.
        """

        def lease() -> list[Lease]:
            leases = self._prompts.lease(count, block_seconds)
            for one in leases:
                self._held[one.entry_id] = one
                self._keeper.hold(one)
            return leases

        if patient:
            return self._patiently(lease)
        try:
            return lease()
        except (RedisUnreachable, RedisOutOfMemory) as error:
            self.last_error = str(error)
            _log.warning("no_groups_taken", kind=error.kind, message=error.message)
            return None

    def lost(self, lease: Lease) -> bool:
        """Whether a renewal found that the group is with another worker."""
        return self._keeper.lost(lease)

    def hand_on(self, finished: Sequence[tuple[Lease, bytes]]) -> list[Lease]:
        """Puts finished groups into the next stream, together.

        Returns:
            Leases that were lost; they are dropped.
        """
        lost = self._patiently(lambda: self._prompts.forward_many(finished, self._completions_key))
        for lease in lost:
            self.drop_lost(lease)
        for lease, _ in finished:
            if lease not in lost:
                self._forget(lease)
        return lost

    def drop_lost(self, lease: Lease) -> None:
        """Forgets a lease that another worker has, and counts it."""
        self._forget(lease)
        self.lost_count += 1
        _log.warning("lease_lost", group_id=lease.group_id, lost=self.lost_count)

    def strike(self, lease: Lease, kind: str, message: str) -> None:
        """Reports that the group failed here."""
        self.last_error = f"{lease.group_id}: {message}"
        quarantined = self._patiently(lambda: self._prompts.fail(lease, kind, message))
        self._forget(lease)
        _log.error("group_failed", group_id=lease.group_id, kind=kind, message=message, quarantined=quarantined)

    def give_back(self, lease: Lease) -> None:
        """Lets another worker begin at once; a Redis that is away is left to let the lease expire."""
        try:
            self._prompts.give_back(lease)
        except QueueError as error:
            _log.warning("lease_not_given_back", group_id=lease.group_id, kind=error.kind, message=error.message)
        self._forget(lease)

    def give_all_back(self) -> None:
        """Gives back whatever is still held."""
        for lease in list(self._held.values()):
            self.give_back(lease)

    def _forget(self, lease: Lease) -> None:
        self._keeper.release(lease)
        self._held.pop(lease.entry_id, None)

    def _patiently(self, action: Callable[[], T]) -> T:
        """Runs a queue command, again while Redis does not answer or is full; a drain ends the waiting."""
        deadline, pause = time.monotonic() + self._redis_patience, self._pause
        while True:
            try:
                return action()
            except (RedisUnreachable, RedisOutOfMemory) as error:
                if time.monotonic() + pause > deadline or self._stopping.is_set():
                    raise
                self.last_error = str(error)
                _log.warning("waiting_for_redis", kind=error.kind, message=error.message, retry_seconds=pause)
                self._stopping.wait(pause)
                pause = min(2 * pause, 10 * self._pause)
