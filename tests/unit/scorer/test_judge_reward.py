"""The reward `judge` against a JudgeService on loopback whose answers the test decides."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest

from tersely.errors import ConfigValue, JudgeNotConfigured, RewardFailed
from tersely.rpc.errors import errors_as_status
from tersely.rpc.server import GrpcServer
from tersely.scorer.batch import score_batch
from tersely.scorer.registry import build_reward
from tersely.scorer.rewards import judge as module
from tersely.scorer.rewards.base import RewardInput
from tersely.scorer.rewards.judge import AXES, JUDGE_ENV, JudgeReward
from tersely.v1 import judge_pb2, judge_pb2_grpc


class Judge(judge_pb2_grpc.JudgeServiceServicer):
    """Every axis gets the summary as a number; a summary `abstain` gets no coverage; `other` mixes ids up."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    async def Judge(  # noqa: N802 - the proto's name
        self,
        request: judge_pb2.JudgeRequest,
        context: grpc.aio.ServicerContext[judge_pb2.JudgeRequest, judge_pb2.JudgeResponse],
    ) -> judge_pb2.JudgeResponse:
        return self._one(request)

    async def JudgeBatch(  # noqa: N802 - the proto's name
        self,
        request: judge_pb2.JudgeBatchRequest,
        context: grpc.aio.ServicerContext[judge_pb2.JudgeBatchRequest, judge_pb2.JudgeBatchResponse],
    ) -> judge_pb2.JudgeBatchResponse:
        self.calls.append([each.summary for each in request.requests])
        async with errors_as_status(context):
            if any(each.summary == "refuse" for each in request.requests):
                raise JudgeNotConfigured("no judge endpoint configured", "Set one.")
        return judge_pb2.JudgeBatchResponse(responses=[self._one(each) for each in request.requests])

    def _one(self, request: judge_pb2.JudgeRequest) -> judge_pb2.JudgeResponse:
        if request.summary == "abstain":
            axes = [judge_pb2.JudgeAxis(name=name, score=0.5) for name in AXES]
            axes[1].ClearField("score")
            axes[1].error = "judge_timeout"
            return judge_pb2.JudgeResponse(id=request.id, axes=axes)
        score = 0.0 if request.summary == "other" else float(request.summary)
        axes = [judge_pb2.JudgeAxis(name=name, score=score) for name in AXES]
        given = "someone else's" if request.summary == "other" else request.id
        return judge_pb2.JudgeResponse(id=given, axes=axes, composite=4 * score)


@pytest.fixture
def judge() -> Iterator[tuple[Judge, str]]:
    servicer = Judge()
    server = GrpcServer()
    server.add(lambda grpc_server: judge_pb2_grpc.add_JudgeServiceServicer_to_server(servicer, grpc_server))
    with server:
        yield servicer, server.address


def items(*texts: str, group: str = "g") -> list[RewardInput]:
    return [RewardInput(text=text, document="d", group_key=group) for text in texts]


def test_a_group_is_one_call_and_the_composite_is_the_value(judge: tuple[Judge, str]) -> None:
    servicer, address = judge
    reward = JudgeReward(address=address)
    assert reward.score(items("0.25", "1.0", "0")) == [1.0, 4.0, 0.0]
    assert servicer.calls == [["0.25", "1.0", "0"]]
    assert reward.range == (0.0, 4.0)


def test_one_axis_may_be_asked_for(judge: tuple[Judge, str]) -> None:
    reward = JudgeReward(address=judge[1], axis="clarity")
    assert reward.score(items("0.25", "abstain")) == [0.25, 0.5]
    assert reward.range == (0.0, 1.0)
    assert JudgeReward(address=judge[1], axis="coverage").score(items("abstain")) == [None]


def test_an_abstention_has_no_value_and_says_why(judge: tuple[Judge, str]) -> None:
    (scored,), (abstained,) = score_batch(items("0.5", "abstain"), [JudgeReward(address=judge[1])])
    assert scored.value == 2.0
    assert not abstained.HasField("value")
    assert abstained.absent_reason == "the judge abstained (coverage: judge_timeout)"


def test_a_summary_without_a_document_is_not_sent(judge: tuple[Judge, str]) -> None:
    servicer, address = judge
    batch = [RewardInput(text="1", document=" "), *items("0.5")]
    (absent,), (value,) = score_batch(batch, [JudgeReward(address=address)])
    assert (absent.absent_reason, value.value) == ("no document", 2.0)
    assert servicer.calls[-1] == ["0.5"]


def test_large_batches_are_cut_into_calls_in_order(judge: tuple[Judge, str], monkeypatch: pytest.MonkeyPatch) -> None:
    servicer, address = judge
    monkeypatch.setattr(module, "MOST_REQUESTS", 3)
    texts = ["0", "0.25", "0.5", "0.75", "1"]
    assert JudgeReward(address=address).score(items(*texts)) == [0, 1, 2, 3, 4]
    monkeypatch.setattr(module, "MOST_BYTES", 8)
    assert JudgeReward(address=address).score(items(*texts)) == [0, 1, 2, 3, 4]
    assert [len(call) for call in servicer.calls] == [3, 2, 2, 1, 2]
    assert JudgeReward(address=address).score([]) == []


def test_the_address_may_come_from_the_environment(judge: tuple[Judge, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(JUDGE_ENV, judge[1])
    assert build_reward("judge").score(items("1")) == [4.0]


def test_without_an_address_it_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(JUDGE_ENV, raising=False)
    with pytest.raises(JudgeNotConfigured, match="does not know where the judge is") as caught:
        build_reward("judge")
    assert JUDGE_ENV in caught.value.way_out


@pytest.mark.parametrize(
    "options",
    [{"axis": "claritty"}, {"address": "nowhere"}, {"address": 3}, {"deadline_seconds": 0}, {"deadline_seconds": True}],
)
def test_wrong_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ConfigValue):
        build_reward("judge", {"address": "127.0.0.1:1", **options})


def test_a_judge_that_does_not_answer_costs_the_values_not_the_scorer() -> None:
    reward = JudgeReward(address="127.0.0.1:1", deadline_seconds=0.2)
    with pytest.raises(RewardFailed, match="The judge gave no answer"):
        reward.score(items("1"))
    ((value,),) = score_batch(items("1"), [reward])
    assert not value.HasField("value")
    assert "The judge gave no answer" in value.absent_reason


def test_a_judge_without_an_endpoint_says_so(judge: tuple[Judge, str]) -> None:
    ((value,),) = score_batch(items("refuse"), [JudgeReward(address=judge[1])])
    assert "no judge endpoint configured" in value.absent_reason


def test_an_answer_to_another_question_is_no_value(judge: tuple[Judge, str]) -> None:
    with pytest.raises(RewardFailed, match="or others"):
        JudgeReward(address=judge[1]).score(items("other"))
