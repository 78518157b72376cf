"""The gRPC door of the scoring service: rewards for anyone's summaries, without a run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import grpc

from tersely.errors import ConfigValue
from tersely.rpc.errors import errors_as_status
from tersely.scorer.batch import score_batch
from tersely.scorer.registry import build_reward
from tersely.scorer.rewards.base import Reward, RewardInput
from tersely.scorer.rows import check_names
from tersely.v1 import scoring_pb2, scoring_pb2_grpc

MOST_ITEMS = 4096
MOST_RESPONSE_BYTES = (4 << 20) - 1024
"""A little less than what a gRPC client takes by default."""

Context = grpc.aio.ServicerContext[scoring_pb2.ScoreRequest, scoring_pb2.ScoreResponse]


class ScoringServicer(scoring_pb2_grpc.ScoringServiceServicer):
    """Answers calls one after the other, off the event loop.

    A call that is cancelled, or whose deadline passes, while it waits for its turn is not begun; one that has begun
    runs to its end, and its answer is dropped.

    Args:
        rewards: Rewards of a request that names none; named ones keep their options, others are set up with defaults.
    """

    def __init__(self, rewards: Sequence[Reward]) -> None:
        self._default = tuple(reward.name for reward in rewards)
        self._rewards = {reward.name: reward for reward in rewards}
        # Plugins need not be safe to call from several threads: one, whatever becomes of the call that asked.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="scoring")

    async def Score(  # noqa: N802 - the proto's name
        self, request: scoring_pb2.ScoreRequest, context: Context
    ) -> scoring_pb2.ScoreResponse:
        """Scores a batch; INVALID_ARGUMENT for an unknown reward or more than 4096 items."""
        async with errors_as_status(context):
            return await self._in_turn(request)

    async def ScoreStream(  # noqa: N802 - the proto's name
        self, request_iterator: AsyncIterator[scoring_pb2.ScoreRequest], context: Context
    ) -> AsyncIterator[scoring_pb2.ScoreResponse]:
        """Scores batch after batch; the next request is read when the answer to the last has gone out."""
        async with errors_as_status(context):
            async for request in request_iterator:
                yield await self._in_turn(request)

    async def _in_turn(self, request: scoring_pb2.ScoreRequest) -> scoring_pb2.ScoreResponse:
        check_size(request)
        return await asyncio.get_running_loop().run_in_executor(self._thread, self.answer, request)

    def answer(self, request: scoring_pb2.ScoreRequest) -> scoring_pb2.ScoreResponse:
        """The response to a request.

        Raises:
            RewardUnknown, RewardFailed.
            ConfigValue: A reward is named twice, or the response would be larger than a client takes.
        """
        if request.rewards:
            check_names(request.rewards, {})
        rewards = [self._reward(name) for name in request.rewards or self._default]
        inputs = [to_input(index, item) for index, item in enumerate(request.items)]
        rows = score_batch(inputs, rewards)
        results = [
            scoring_pb2.ScoreResult(id=item.id, rewards=row) for item, row in zip(request.items, rows, strict=True)
        ]
        response = scoring_pb2.ScoreResponse(results=results)
        if response.ByteSize() > MOST_RESPONSE_BYTES:
            raise ConfigValue(
                f"The scores of {len(request.items)} items by {len(rewards)} rewards need {response.ByteSize()} bytes;"
                f" a message holds {MOST_RESPONSE_BYTES}.",
                "Send fewer items per request.",
            )
        return response

    def _reward(self, name: str) -> Reward:
        if name not in self._rewards:
            self._rewards[name] = build_reward(name)
        return self._rewards[name]


def check_size(request: scoring_pb2.ScoreRequest) -> None:
    """Refuses a request that is too large.

    Raises:
        ConfigValue: It has more than 4096 items.
    """
    if len(request.items) > MOST_ITEMS:
        raise ConfigValue(
            f"{len(request.items)} items in one request; at most {MOST_ITEMS} are taken.", "Send several requests."
        )


def to_input(index: int, item: scoring_pb2.ScoreItem) -> RewardInput:
    """An item as rewards see it; each is a group of its own, so that one bad item spoils no other."""

    def optional(field: Literal["summary_tokens", "target_tokens"]) -> int | None:
        return int(getattr(item, field)) if item.HasField(field) else None

    return RewardInput(
        text=item.summary,
        token_count=optional("summary_tokens"),
        target_tokens=optional("target_tokens"),
        reference=item.reference,
        document=item.document,
        group_key=str(index),
    )
