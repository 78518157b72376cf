"""JudgeService while no endpoint can be used: one clear answer."""

from __future__ import annotations

import grpc

from tersely.errors import JudgeNotConfigured
from tersely.rpc.errors import errors_as_status
from tersely.v1 import judge_pb2, judge_pb2_grpc

NO_ENDPOINT = "no judge endpoint configured"


class UnconfiguredJudge(judge_pb2_grpc.JudgeServiceServicer):
    """Answers every call with FAILED_PRECONDITION, kind `judge_not_configured`; it never makes a score up."""

    async def Judge(  # noqa: N802 - the proto's name
        self,
        request: judge_pb2.JudgeRequest,
        context: grpc.aio.ServicerContext[judge_pb2.JudgeRequest, judge_pb2.JudgeResponse],
    ) -> judge_pb2.JudgeResponse:
        """Refuses."""
        async with errors_as_status(context):
            raise JudgeNotConfigured(NO_ENDPOINT, "Leave the judge out (judge.enabled = false); nothing needs it.")
