"""Renews leases in the background while the work on them goes on."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

import structlog

from tersely.errors import TerselyError
from tersely.queue.entries import Lease
from tersely.queue.stream import WorkStream

log = structlog.get_logger(__name__)


class LeaseKeeper:
    """A thread that renews held leases every third of the lease time.

    While the server does not answer, leases count as held: `WorkStream.forward` checks again in the end.

    Args:
        stream: Where the leases come from.
    """

    def __init__(self, stream: WorkStream) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._held: dict[bytes, Lease] = {}
        self._lost: set[bytes] = set()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Starts the thread."""
        self._stopping.clear()
        self._thread = threading.Thread(target=self._keep, name=f"lease-keeper {self._stream.key}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread; leases still held are left to expire."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def hold(self, lease: Lease) -> None:
        """Renews this lease from now on."""
        with self._lock:
            self._held[lease.entry_id] = lease
            self._lost.discard(lease.entry_id)

    def release(self, lease: Lease) -> None:
        """Renews it no longer, and forgets whether it was lost."""
        with self._lock:
            self._held.pop(lease.entry_id, None)
            self._lost.discard(lease.entry_id)

    def lost(self, lease: Lease) -> bool:
        """Whether a renewal found that the entry is no longer ours: further work on it is wasted."""
        with self._lock:
            return lease.entry_id in self._lost

    @property
    def count(self) -> int:
        """Leases held now."""
        with self._lock:
            return len(self._held)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _keep(self) -> None:
        while not self._stopping.wait(self._stream.lease_seconds / 3):
            try:
                self._renew()
            except TerselyError as error:
                log.warning("lease_renewal_failed", kind=error.kind, error=str(error), key=self._stream.key)

    def _renew(self) -> None:
        with self._lock:
            leases = list(self._held.values())
        still = {lease.entry_id for lease in self._stream.renew(leases)}
        gone = [lease for lease in leases if lease.entry_id not in still]
        with self._lock:
            for lease in gone:
                # Released while we asked: finished, not lost.
                if self._held.pop(lease.entry_id, None) is not None:
                    self._lost.add(lease.entry_id)
                    log.warning("lease_lost", group_id=lease.group_id, key=self._stream.key)
