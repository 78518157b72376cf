"""JudgeService: judgements of anyone's summaries; without an endpoint one clear answer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import grpc

from tersely.errors import ConfigValue, JudgeEndpoint, JudgeNotConfigured
from tersely.judge.file import without_document
from tersely.judge.judgement import Judgement, abstained
from tersely.judge.pool import DaemonPool
from tersely.judge.rubrics import AXES, rubrics_version
from tersely.rpc.errors import errors_as_status
from tersely.v1 import judge_pb2, judge_pb2_grpc

if TYPE_CHECKING:
    from tersely.judge.judging import Judge

NO_ENDPOINT = "no judge endpoint configured"
MOST_REQUESTS = 512
MOST_BATCHES = 16
Context = grpc.aio.ServicerContext


class UnconfiguredJudge(judge_pb2_grpc.JudgeServiceServicer):
    """Answers every call with FAILED_PRECONDITION, kind `judge_not_configured`; it never makes a score up."""

    async def Judge(  # noqa: N802 - the proto's name
        self,
        request: judge_pb2.JudgeRequest,
        context: Context[judge_pb2.JudgeRequest, judge_pb2.JudgeResponse],
    ) -> judge_pb2.JudgeResponse:
        """Refuses."""
        async with errors_as_status(context):
            raise _not_configured()

    async def JudgeBatch(  # noqa: N802 - the proto's name
        self,
        request: judge_pb2.JudgeBatchRequest,
        context: Context[judge_pb2.JudgeBatchRequest, judge_pb2.JudgeBatchResponse],
    ) -> judge_pb2.JudgeBatchResponse:
        """Refuses."""
        async with errors_as_status(context):
            raise _not_configured()


class JudgeServicer(judge_pb2_grpc.JudgeServiceServicer):
    """Judges with one `Judge`, several calls at a time.

    Args:
        judge: The judge; the caller closes it.
        on_judged: Called after each call with the number of summaries judged in it, from another thread.
    """

    def __init__(self, judge: Judge, on_judged: Callable[[int], None] = lambda count: None) -> None:
        self._judge = judge
        self._on_judged = on_judged
        self._threads = DaemonPool(MOST_BATCHES, "judge-call")

    async def Judge(  # noqa: N802 - the proto's name
        self,
        request: judge_pb2.JudgeRequest,
        context: Context[judge_pb2.JudgeRequest, judge_pb2.JudgeResponse],
    ) -> judge_pb2.JudgeResponse:
        """Judges one summary."""
        async with errors_as_status(context):
            return (await self._answer([request]))[0]

    async def JudgeBatch(  # noqa: N802 - the proto's name
        self,
        request: judge_pb2.JudgeBatchRequest,
        context: Context[judge_pb2.JudgeBatchRequest, judge_pb2.JudgeBatchResponse],
    ) -> judge_pb2.JudgeBatchResponse:
        """Judges several; INVALID_ARGUMENT for more than 512."""
        async with errors_as_status(context):
            if len(request.requests) > MOST_REQUESTS:
                raise ConfigValue(
                    f"{len(request.requests)} summaries in one call; at most {MOST_REQUESTS} are taken.",
                    "Make several calls.",
                )
            return judge_pb2.JudgeBatchResponse(responses=await self._answer(request.requests))

    async def _answer(self, requests: Sequence[judge_pb2.JudgeRequest]) -> list[judge_pb2.JudgeResponse]:
        cancelled = threading.Event()
        try:
            return await asyncio.wrap_future(self._threads.submit(self.answer, requests, cancelled))
        finally:
            # The caller gave up, or its deadline passed: what was not asked yet is not asked any more.
            cancelled.set()

    def answer(
        self, requests: Sequence[judge_pb2.JudgeRequest], cancelled: threading.Event
    ) -> list[judge_pb2.JudgeResponse]:
        """The responses to requests, in order.

        Raises:
            ConfigValue, JudgeCache, DiskFull.
        """
        from tersely.judge.judging import Pair

        pairs = [Pair(request.document, request.summary) if request.document else None for request in requests]
        try:
            name = self._judge.endpoint.model()
            found = [judgement or without_document(name) for judgement in self._judge.judge_all(pairs, cancelled)]
        except JudgeEndpoint as error:
            found = [abstained(AXES, "judge_unreachable", error.message, judge="", rubrics=rubrics_version())] * len(
                pairs
            )
        self._on_judged(len(found))
        return [to_response(request.id, judgement) for request, judgement in zip(requests, found, strict=True)]


def to_response(identity: str, judgement: Judgement) -> judge_pb2.JudgeResponse:
    """A judgement as it travels."""
    return judge_pb2.JudgeResponse(
        id=identity,
        axes=[
            judge_pb2.JudgeAxis(
                name=name,
                score=axis.score,
                reason=axis.reason,
                error=axis.error,
                rounds=axis.rounds,
                cached=axis.cached,
                weighted=axis.weighted,
            )
            for name, axis in judgement.axes.items()
        ],
        composite=judgement.composite,
        passed=judgement.passed,
        judge=judgement.judge,
        rubrics=judgement.rubrics,
        tokens=judgement.tokens,
        calls=judgement.calls,
    )


def _not_configured() -> JudgeNotConfigured:
    return JudgeNotConfigured(
        NO_ENDPOINT, "Set judge.endpoint (docs/judge.md), or leave the judge out (judge.enabled = false)."
    )
