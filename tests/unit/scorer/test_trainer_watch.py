"""A scorer without work finds out that its trainer is gone or has another run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tersely.errors import TrainerUnreachable
from tersely.rpc.client import dial
from tersely.rpc.server import GrpcServer
from tersely.scorer.trainer_watch import TrainerWatch
from tersely.types import RunId
from tersely.v1 import run_pb2, run_pb2_grpc


class FakeRunService(run_pb2_grpc.RunServiceServicer):
    status_json = '{"run_id": "r-1"}'
    asked = 0

    async def GetStatus(self, request: run_pb2.GetStatusRequest, context: Any) -> run_pb2.GetStatusResponse:  # noqa: N802
        self.asked += 1
        return run_pb2.GetStatusResponse(status_json=self.status_json)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def service() -> FakeRunService:
    return FakeRunService()


@pytest.fixture
def server(service: FakeRunService) -> Iterator[GrpcServer]:
    server = GrpcServer()
    server.add(lambda grpc_server: run_pb2_grpc.add_RunServiceServicer_to_server(service, grpc_server))
    with server:
        yield server


def test_another_run_is_noticed_and_the_question_is_not_asked_too_often(
    server: GrpcServer, service: FakeRunService
) -> None:
    clock = Clock()
    with dial(server.address) as channel:
        watch = TrainerWatch(channel, server.address, RunId("r-1"), clock=clock)
        assert watch.same_run()
        assert service.asked == 0
        clock.now = 16
        assert watch.same_run()
        service.status_json = '{"run_id": "r-2"}'
        assert watch.same_run()
        assert service.asked == 1
        clock.now = 32
        assert not watch.same_run()


def test_a_trainer_without_run_id_in_its_status_is_taken_as_ours(server: GrpcServer, service: FakeRunService) -> None:
    service.status_json = "{}"
    with dial(server.address) as channel:
        assert TrainerWatch(channel, server.address, RunId("r-1"), every_seconds=0).same_run()


def test_a_trainer_that_is_away_is_waited_for_and_then_given_up(
    server: GrpcServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tersely.scorer.trainer_watch.CALL_SECONDS", 0.1)
    clock = Clock()
    with dial(server.address) as channel:
        watch = TrainerWatch(channel, server.address, RunId("r-1"), clock=clock)
        server.stop(0)
        clock.now = 100
        assert watch.same_run()
        clock.now = 181
        with pytest.raises(TrainerUnreachable, match="away for 181 s"):
            watch.same_run()
