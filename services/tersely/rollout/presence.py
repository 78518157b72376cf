"""Notices that the trainer is gone, from the state of the channel that the version watch keeps open."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import grpc
import structlog

from tersely.errors import TrainerUnreachable

_LOG_EVERY_SECONDS = 10.0
_log = structlog.get_logger(__name__)


class TrainerPresence:
    """Says how long the channel has been without a connection.

    Args:
        channel: Channel to the trainer, in use by a watch that reconnects.
        address: For messages.
        patience_seconds: How long the trainer may be away.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        channel: grpc.Channel,
        address: str,
        patience_seconds: float = 180.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._address = address
        self._patience = patience_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._away_since: float | None = None
        self._logged = 0.0
        channel.subscribe(self._on_state)

    def check(self) -> None:
        """Logs, now and then, that the trainer is away.

        Raises:
            TrainerUnreachable: It has been away for longer than the patience.
        """
        with self._lock:
            since = self._away_since
        if since is None:
            return
        now = self._clock()
        if now - since > self._patience:
            raise TrainerUnreachable(
                f"The trainer at {self._address} has been away for {now - since:.0f} s.",
                "Start it again with --resume; workers join again when they are restarted.",
            )
        if now - max(since, self._logged) >= _LOG_EVERY_SECONDS:
            self._logged = now
            _log.warning("waiting_for_trainer", address=self._address, seconds=round(now - since))

    def _on_state(self, state: grpc.ChannelConnectivity) -> None:
        with self._lock:
            if state in (grpc.ChannelConnectivity.READY, grpc.ChannelConnectivity.IDLE):
                self._away_since = None
            elif self._away_since is None:
                self._away_since = self._clock()
