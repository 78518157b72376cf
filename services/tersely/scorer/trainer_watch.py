"""Notices, while there is nothing to score, that the trainer is gone or has begun another run.

A scorer talks to the trainer only to join; its work comes from the queue, which says nothing about either.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import grpc
import structlog

from tersely.errors import RpcError, TrainerUnreachable
from tersely.rpc.client import call
from tersely.types import RunId
from tersely.v1 import run_pb2, run_pb2_grpc

EVERY_SECONDS = 15.0
PATIENCE_SECONDS = 180.0
CALL_SECONDS = 2.0

log = structlog.get_logger(__name__)


class TrainerWatch:
    """Asks the trainer now and then which run it has.

    Args:
        channel: Channel to the trainer.
        address: Its address, for messages.
        run_id: Run this scorer joined.
        every_seconds: Least time between two questions.
        patience_seconds: How long the trainer may be away.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        channel: grpc.Channel,
        address: str,
        run_id: RunId,
        *,
        every_seconds: float = EVERY_SECONDS,
        patience_seconds: float = PATIENCE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stub = run_pb2_grpc.RunServiceStub(channel)
        self._address = address
        self._run_id = run_id
        self._every_seconds = every_seconds
        self._patience_seconds = patience_seconds
        self._clock = clock
        self._seen = self._asked = clock()

    def same_run(self) -> bool:
        """Whether the trainer still has our run, as far as can be told; cheap when called often.

        Raises:
            TrainerUnreachable: It has been away for longer than the patience.
        """
        now = self._clock()
        if now - self._asked < self._every_seconds:
            return True
        self._asked = now
        try:
            answer = call(
                self._stub.GetStatus, run_pb2.GetStatusRequest(), address=self._address, deadline_seconds=CALL_SECONDS
            )
        except TrainerUnreachable:
            return self._away(now)
        except RpcError as error:
            # It answered, but can't say.
            log.debug("trainer_status_unknown", error=error.message)
            self._seen = now
            return True
        self._seen = now
        current = json.loads(answer.status_json).get("run_id") or self._run_id
        if current != self._run_id:
            log.info("trainer_has_another_run", ours=self._run_id, theirs=current)
        return bool(current == self._run_id)

    def _away(self, now: float) -> bool:
        away = now - self._seen
        if away > self._patience_seconds:
            raise TrainerUnreachable(
                f"The trainer at {self._address} has been away for {away:.0f} s.",
                "Start it again with --resume, then start this scorer again.",
            )
        log.warning("trainer_away", address=self._address, seconds=round(away))
        return True
