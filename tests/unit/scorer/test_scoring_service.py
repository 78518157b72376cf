"""ScoringService over a real loopback server."""

from collections.abc import Iterator

import grpc
import pytest

from tersely.errors import ConfigValue, RewardUnknown
from tersely.rpc.client import call, dial
from tersely.rpc.server import GrpcServer
from tersely.scorer.registry import build_reward
from tersely.scorer.scoring_service import ScoringServicer
from tersely.v1 import scoring_pb2, scoring_pb2_grpc


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    servicer = ScoringServicer([build_reward("length", {"scale": "raw"})])
    server = GrpcServer()
    server.add(lambda grpc_server: scoring_pb2_grpc.add_ScoringServiceServicer_to_server(servicer, grpc_server))
    with server:
        yield server.address


def score(address: str, request: scoring_pb2.ScoreRequest) -> scoring_pb2.ScoreResponse:
    with dial(address) as channel:
        return call(scoring_pb2_grpc.ScoringServiceStub(channel).Score, request, address=address)


def item(name: str, **fields: object) -> scoring_pb2.ScoreItem:
    return scoring_pb2.ScoreItem(id=name, summary="one two", **fields)  # type: ignore[arg-type]


def test_results_keep_ids_and_order_and_use_the_rewards_it_was_started_with(address: str) -> None:
    items = [item("b", summary_tokens=3, target_tokens=5), item("a", summary_tokens=5, target_tokens=5)]
    results = score(address, scoring_pb2.ScoreRequest(items=items)).results
    assert [(r.id, [(v.name, v.value) for v in r.rewards]) for r in results] == [
        ("b", [("length", -2.0)]),
        ("a", [("length", 0.0)]),
    ]


def test_a_request_may_name_other_rewards(address: str) -> None:
    request = scoring_pb2.ScoreRequest(items=[item("a", reference="one two")], rewards=["rouge_l", "length"])
    (result,) = score(address, request).results
    rouge, length = result.rewards
    assert rouge.value == 1.0
    assert not length.HasField("value")
    assert length.absent_reason == "no token count or no target length"


def test_an_item_without_a_length_is_absent_beside_one_with_a_length(address: str) -> None:
    items = [item("a"), item("b", summary_tokens=0, target_tokens=5)]
    results = score(address, scoring_pb2.ScoreRequest(items=items)).results
    assert [r.rewards[0].HasField("value") for r in results] == [False, True]
    assert results[1].rewards[0].value == -5.0


def test_an_unknown_reward_is_an_invalid_argument_with_its_kind(address: str) -> None:
    request = scoring_pb2.ScoreRequest(items=[item("a")], rewards=["lenght"])
    with pytest.raises(RewardUnknown) as caught:
        score(address, request)
    assert caught.value.way_out == "Did you mean length?"
    with dial(address) as channel, pytest.raises(grpc.RpcError) as raw:
        scoring_pb2_grpc.ScoringServiceStub(channel).Score(request, timeout=10)
    assert raw.value.code() == grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[attr-defined]


def test_4096_items_are_taken_and_one_more_is_refused(address: str) -> None:
    items = [item(str(n), summary_tokens=n, target_tokens=1) for n in range(4096)]
    assert len(score(address, scoring_pb2.ScoreRequest(items=items)).results) == 4096
    with pytest.raises(ConfigValue, match="4097 items in one request; at most 4096"):
        score(address, scoring_pb2.ScoreRequest(items=[*items, item("one more")]))


def test_no_items_give_no_results(address: str) -> None:
    assert len(score(address, scoring_pb2.ScoreRequest()).results) == 0
