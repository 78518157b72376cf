"""RunService: the run's state over gRPC, and a way to end it in good order."""

from __future__ import annotations

import json
from typing import Any

from tersely.node.drain import DrainSignal
from tersely.trainer.status import Status
from tersely.v1 import run_pb2, run_pb2_grpc


class RunServicer(run_pb2_grpc.RunServiceServicer):
    """Answers for one run."""

    def __init__(self, status: Status, drain: DrainSignal) -> None:
        self._status = status
        self._drain = drain

    async def GetStatus(self, request: run_pb2.GetStatusRequest, context: Any) -> run_pb2.GetStatusResponse:  # noqa: N802
        """The state as JSON."""
        return run_pb2.GetStatusResponse(status_json=json.dumps(self._status.snapshot()))

    async def Drain(self, request: run_pb2.DrainRequest, context: Any) -> run_pb2.DrainResponse:  # noqa: N802
        """Asks the loop to end after the batch in hand."""
        self._drain.set()
        return run_pb2.DrainResponse(policy_version=self._status.snapshot().get("policy_version", -1))
