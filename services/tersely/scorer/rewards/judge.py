"""What a language model thinks of a summary, asked through JudgeService. The judge itself is a service of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import grpc
import structlog

from tersely.errors import ConfigValue, JudgeNotConfigured, RewardFailed, RpcError
from tersely.rpc.address import parse_address
from tersely.rpc.client import call, dial
from tersely.scorer.rewards.base import ReasonedValues, RewardInput, checked_choice
from tersely.v1 import judge_pb2, judge_pb2_grpc

JUDGE_ENV = "TERSELY_JUDGE"
"""Environment variable with the address of JudgeService, host:port; `tersely up` sets it for its scorers."""
COMPOSITE = "composite"
AXES = ("faithfulness", "coverage", "conciseness", "clarity")
MOST_REQUESTS = 512
MOST_BYTES = 2 << 20
"""Of one call; gRPC refuses messages beyond 4 MiB."""

log = structlog.get_logger(__name__)


class JudgeReward:
    """The judge's score: the sum of four axes (0 to 4), or one of them (0 to 1).

    A summary that the judge abstains on has no value, and the judge's reason says why. So has one without a document,
    which is not sent. The judge is first asked when something is scored.

    Args:
        address: host:port of JudgeService; none: the environment variable TERSELY_JUDGE.
        axis: `composite`, `faithfulness`, `coverage`, `conciseness` or `clarity`.
        deadline_seconds: Most seconds for one call, with up to 512 summaries; a judge that is still starting is waited
            for as long.

    Raises:
        ConfigValue: An option is out of range.
        JudgeNotConfigured: No address is given.
    """

    name: ClassVar[str] = "judge"
    higher_is_better: ClassVar[bool] = True
    gamed_by: ClassVar[str] = (
        "the judge's taste: length, confident tone, its own phrases; text that speaks to the judge"
    )
    absent_reason: ClassVar[str] = "no document, or the judge abstained"

    def __init__(self, *, address: str | None = None, axis: str = COMPOSITE, deadline_seconds: float = 300.0) -> None:
        self.check_options(address=address, axis=axis, deadline_seconds=deadline_seconds)
        found = address or os.environ.get(JUDGE_ENV)
        if not found:
            raise JudgeNotConfigured(
                "The reward judge does not know where the judge is.",
                f"Start one with `tersely judge`, then set {JUDGE_ENV} or rewards.judge.address to its host:port;"
                " with judge.endpoint in the recipe, `tersely up` does both.",
            )
        self._address = str(parse_address(found))
        self._axis = axis
        self._deadline_seconds = float(deadline_seconds)
        self._channel: tuple[int, grpc.Channel] | None = None

    @classmethod
    def check_options(
        cls, *, address: str | None = None, axis: str = COMPOSITE, deadline_seconds: float = 300.0
    ) -> None:
        """Looks at the options alone, where no judge runs yet.

        Raises:
            ConfigValue: One of them is out of range.
        """
        checked_choice(cls.name, "axis", axis, (COMPOSITE, *AXES))
        if address is not None:
            if not isinstance(address, str):
                raise ConfigValue(f"rewards.judge.address is {address!r}.", 'Write it like "127.0.0.1:50061".')
            parse_address(address)
        number = isinstance(deadline_seconds, (int, float)) and not isinstance(deadline_seconds, bool)
        if not number or not 0 < deadline_seconds <= 3600:
            raise ConfigValue(
                f"rewards.judge.deadline_seconds is {deadline_seconds!r}; it must be above 0 and at most 3600.",
                "Use 300, or more for a slow judge.",
            )

    @property
    def range(self) -> tuple[float, float]:
        """0 to 4 for the composite, 0 to 1 for one axis."""
        return (0.0, float(len(AXES))) if self._axis == COMPOSITE else (0.0, 1.0)

    def score(self, batch: Sequence[RewardInput]) -> list[float | None]:
        """Values within `range`; None, with the reason, where the judge abstained or there is no document.

        Raises:
            RewardFailed: The judge does not answer, or answers with something else than was asked.
        """
        values = ReasonedValues([None] * len(batch))
        asked = [index for index, item in enumerate(batch) if item.document.strip()]
        for index in set(range(len(batch))) - set(asked):
            values.reasons[index] = "no document"
        for indices in _calls(batch, asked):
            for index, response in zip(indices, self._ask([batch[i] for i in indices]), strict=True):
                values[index], reason = self._value(response)
                if reason:
                    values.reasons[index] = reason
        abstained = sum(values[index] is None for index in asked)
        if abstained:
            log.warning("judge_abstained", summaries=abstained, of=len(asked), first=_first_reason(values, asked))
        return values

    def _value(self, response: judge_pb2.JudgeResponse) -> tuple[float | None, str]:
        """The value and an empty reason, or None and why."""
        if self._axis == COMPOSITE:
            if response.HasField("composite"):
                return response.composite, ""
            missing = [
                f"{axis.name}: {axis.error or 'no score'}" for axis in response.axes if not axis.HasField("score")
            ]
            return None, "the judge abstained (" + (", ".join(missing) or "no composite") + ")"
        for axis in response.axes:
            if axis.name == self._axis:
                if axis.HasField("score"):
                    return axis.score, ""
                return None, f"the judge abstained ({axis.name}: {axis.error or 'no score'})"
        return None, f"the judge does not score {self._axis}"

    def _ask(self, items: Sequence[RewardInput]) -> Sequence[judge_pb2.JudgeResponse]:
        request = judge_pb2.JudgeBatchRequest(
            requests=[
                judge_pb2.JudgeRequest(document=item.document, summary=item.text, id=str(index))
                for index, item in enumerate(items)
            ]
        )
        stub = judge_pb2_grpc.JudgeServiceStub(self._open())
        try:
            answer = call(stub.JudgeBatch, request, address=self._address, deadline_seconds=self._deadline_seconds)
        except RpcError as error:
            raise RewardFailed(f"The judge gave no answer: {error.message}", error.way_out) from None
        if [response.id for response in answer.responses] != [each.id for each in request.requests]:
            raise RewardFailed(
                f"The judge at {self._address} answered {len(answer.responses)} summaries of {len(items)}, or others.",
                "Run the same version of tersely on all machines.",
            )
        return answer.responses

    def _open(self) -> grpc.Channel:
        """The channel of this process; one opened before a fork is left to the parent."""
        if self._channel is None or self._channel[0] != os.getpid():
            self._channel = os.getpid(), dial(self._address, server="judge")
        return self._channel[1]


def _calls(batch: Sequence[RewardInput], indices: Sequence[int]) -> Iterator[list[int]]:
    """Cuts the indices into calls of a size that the judge takes; an item beyond it is a call of its own."""
    current: list[int] = []
    size = 0
    for index in indices:
        item_bytes = len(batch[index].document.encode()) + len(batch[index].text.encode())
        if current and (len(current) == MOST_REQUESTS or size + item_bytes > MOST_BYTES):
            yield current
            current, size = [], 0
        current.append(index)
        size += item_bytes
    if current:
        yield current


def _first_reason(values: ReasonedValues, asked: Sequence[int]) -> str:
    reasons: Mapping[int, str] = values.reasons
    return next((reasons[index] for index in asked if index in reasons), "")
