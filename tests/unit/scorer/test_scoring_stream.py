"""ScoringService: the stream, deadlines, turns and sizes, over a real loopback server."""

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ClassVar

import grpc
import pytest

from tersely.errors import ConfigValue
from tersely.rpc.client import call, dial
from tersely.rpc.errors import sent_error
from tersely.rpc.server import GrpcServer
from tersely.scorer import scoring_service
from tersely.scorer.rewards.base import RewardInput
from tersely.scorer.scoring_service import ScoringServicer
from tersely.v1 import scoring_pb2, scoring_pb2_grpc


class Gated:
    """A reward that waits at a gate and notes what it was asked."""

    name: ClassVar[str] = "gated"
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    higher_is_better: ClassVar[bool] = True
    gamed_by: ClassVar[str] = "nothing"
    absent_reason: ClassVar[str] = "x" * 2000

    def __init__(self) -> None:
        self.open = threading.Event()
        self.reached = threading.Event()
        self.seen: list[str] = []
        self.inside = self.most_inside = 0

    def score(self, batch: Sequence[RewardInput]) -> list[float | None]:
        self.inside += 1
        self.most_inside = max(self.inside, self.most_inside)
        self.reached.set()
        assert self.open.wait(30)
        self.seen += [item.text for item in batch]
        self.inside -= 1
        return [None if item.text == "none" else float(len(item.text)) for item in batch]


@pytest.fixture
def gated() -> Gated:
    return Gated()


class Noting(ThreadPoolExecutor):
    """Notes what was handed to its thread."""

    handed_in: ClassVar[list[Future[Any]]] = []

    def submit(self, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = super().submit(*args, **kwargs)
        self.handed_in.append(future)
        return future


@pytest.fixture
def handed_in(monkeypatch: pytest.MonkeyPatch) -> list[Future[Any]]:
    monkeypatch.setattr(scoring_service, "ThreadPoolExecutor", Noting)
    Noting.handed_in.clear()
    return Noting.handed_in


@pytest.fixture
def stub(gated: Gated, handed_in: list[Future[Any]]) -> Iterator[scoring_pb2_grpc.ScoringServiceStub]:
    servicer = ScoringServicer([gated])
    server = GrpcServer()
    server.add(lambda grpc_server: scoring_pb2_grpc.add_ScoringServiceServicer_to_server(servicer, grpc_server))
    with server, dial(server.address) as channel:
        yield scoring_pb2_grpc.ScoringServiceStub(channel)
        gated.open.set()


def request(*texts: str, rewards: Sequence[str] = ()) -> scoring_pb2.ScoreRequest:
    items = [scoring_pb2.ScoreItem(id=text, summary=text) for text in texts]
    return scoring_pb2.ScoreRequest(items=items, rewards=rewards)


def test_a_stream_answers_each_request_in_order(stub: scoring_pb2_grpc.ScoringServiceStub, gated: Gated) -> None:
    gated.open.set()
    requests = [request("a", "bb"), request(), request("ccc")]
    answers = list(stub.ScoreStream(iter(requests), timeout=30))
    assert [[(r.id, r.rewards[0].value) for r in answer.results] for answer in answers] == [
        [("a", 1.0), ("bb", 2.0)],
        [],
        [("ccc", 3.0)],
    ]


def test_a_refused_request_ends_the_stream_with_its_error_after_the_answers_before_it(
    stub: scoring_pb2_grpc.ScoringServiceStub, gated: Gated
) -> None:
    gated.open.set()
    answers = stub.ScoreStream(iter([request("a"), request("b", rewards=["gated", "gated"])]), timeout=30)
    assert next(answers).results[0].id == "a"
    with pytest.raises(grpc.RpcError) as raised:
        next(answers)
    error = sent_error(raised.value)
    assert isinstance(error, ConfigValue)
    assert "gated is named twice" in error.message


def test_a_call_whose_deadline_passes_in_the_queue_is_never_begun(
    stub: scoring_pb2_grpc.ScoringServiceStub, gated: Gated, handed_in: list[Future[Any]]
) -> None:
    first = stub.Score.future(request("first"), timeout=30)
    assert gated.reached.wait(30)
    with pytest.raises(grpc.RpcError) as raised:
        stub.Score(request("late"), timeout=0.3)
    assert raised.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    # The server's clock for the deadline begins when the call arrives: it ends a little later than the client's.
    until = time.monotonic() + 30
    while not (len(handed_in) == 2 and handed_in[1].cancelled()):
        assert time.monotonic() < until, "the server never noticed"
        time.sleep(0.002)
    third = stub.Score.future(request("third"), timeout=30)
    gated.open.set()
    assert first.result().results[0].rewards[0].value == 5.0
    assert third.result().results[0].rewards[0].value == 5.0
    assert gated.seen == ["first", "third"]


def test_a_cancelled_call_does_not_let_the_next_one_in_beside_it(
    stub: scoring_pb2_grpc.ScoringServiceStub, gated: Gated
) -> None:
    first = stub.Score.future(request("first"), timeout=30)
    assert gated.reached.wait(30)
    first.cancel()
    second = stub.Score.future(request("second"), timeout=30)
    gated.open.set()
    second.result()
    assert gated.most_inside == 1
    assert gated.seen == ["first", "second"]


def test_a_message_over_four_mebibytes_is_refused_by_its_size(stub: scoring_pb2_grpc.ScoringServiceStub) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        stub.Score(request("x" * (4 << 20)), timeout=30)
    assert raised.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_an_answer_larger_than_a_client_takes_is_refused_in_words(gated: Gated) -> None:
    gated.open.set()
    servicer = ScoringServicer([gated])
    with pytest.raises(ConfigValue, match="Send fewer items"):
        servicer.answer(request(*["none"] * 3000))


def test_a_unary_call_still_answers_while_a_stream_is_open(
    stub: scoring_pb2_grpc.ScoringServiceStub, gated: Gated
) -> None:
    gated.open.set()
    done = threading.Event()

    def requests() -> Iterator[scoring_pb2.ScoreRequest]:
        yield request("a")
        assert done.wait(30)

    answers = stub.ScoreStream(requests(), timeout=30)
    next(answers)
    (result,) = call(stub.Score, request("bb"), address="the server").results
    assert result.rewards[0].value == 2.0
    done.set()
    assert list(answers) == []
