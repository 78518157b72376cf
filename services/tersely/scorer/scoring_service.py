"""ScoringService: rewards for anyone's summaries, without a run."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Literal

import grpc

from tersely.errors import ConfigValue
from tersely.rpc.errors import errors_as_status
from tersely.scorer.batch import score_batch
from tersely.scorer.registry import build_reward
from tersely.scorer.rewards.base import Reward, RewardInput
from tersely.v1 import scoring_pb2, scoring_pb2_grpc

MOST_ITEMS = 4096


class ScoringServicer(scoring_pb2_grpc.ScoringServiceServicer):
    """Answers Score calls one after the other, off the event loop.

    Args:
        rewards: Rewards of a request that names none; named ones keep their options, others are set up with defaults.
    """

    def __init__(self, rewards: Sequence[Reward]) -> None:
        self._default = tuple(reward.name for reward in rewards)
        self._rewards = {reward.name: reward for reward in rewards}
        # Plugins need not be safe to call from several threads.
        self._one_at_a_time: asyncio.Lock | None = None

    async def Score(  # noqa: N802 - the proto's name
        self,
        request: scoring_pb2.ScoreRequest,
        context: grpc.aio.ServicerContext[scoring_pb2.ScoreRequest, scoring_pb2.ScoreResponse],
    ) -> scoring_pb2.ScoreResponse:
        """Scores a batch; INVALID_ARGUMENT for an unknown reward or more than 4096 items."""
        if self._one_at_a_time is None:
            self._one_at_a_time = asyncio.Lock()
        async with errors_as_status(context):
            check_size(request)
            async with self._one_at_a_time:
                return await asyncio.to_thread(self.answer, request)

    def answer(self, request: scoring_pb2.ScoreRequest) -> scoring_pb2.ScoreResponse:
        """The response to a request.

        Raises:
            RewardUnknown, RewardFailed.
        """
        rewards = [self._reward(name) for name in request.rewards or self._default]
        inputs = [to_input(index, item) for index, item in enumerate(request.items)]
        rows = score_batch(inputs, rewards)
        results = [
            scoring_pb2.ScoreResult(id=item.id, rewards=row) for item, row in zip(request.items, rows, strict=True)
        ]
        return scoring_pb2.ScoreResponse(results=results)

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
