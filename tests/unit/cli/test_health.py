"""`tersely health`: what container health checks ask."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Iterator
from concurrent import futures

import grpc
import pytest

from tersely.v1 import run_pb2, run_pb2_grpc


class Trainer(run_pb2_grpc.RunServiceServicer):
    """Answers a status with one scorer here and one rollout worker elsewhere."""

    def GetStatus(self, request: run_pb2.GetStatusRequest, context: object) -> run_pb2.GetStatusResponse:  # noqa: N802
        nodes = [{"role": "scorer", "host": platform.node()}, {"role": "rollout", "host": "elsewhere"}]
        return run_pb2.GetStatusResponse(status_json=json.dumps({"nodes": nodes}))

    def Drain(self, request: run_pb2.DrainRequest, context: object) -> run_pb2.DrainResponse:  # noqa: N802
        """Nobody asks for it here."""
        return run_pb2.DrainResponse()


@pytest.fixture
def address() -> Iterator[str]:
    server = grpc.server(futures.ThreadPoolExecutor(2))
    run_pb2_grpc.add_RunServiceServicer_to_server(Trainer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


def _health(*arguments: str) -> int:
    command = [sys.executable, "-m", "tersely.cli", "health", *arguments]
    return subprocess.run(command, capture_output=True, timeout=60).returncode


def test_a_node_is_healthy_only_if_the_trainer_hears_that_role_from_this_host(address: str) -> None:
    assert _health(address, "--node", "scorer") == 0
    assert _health(address, "--node", "rollout") == 1


def test_a_server_that_does_not_answer_is_unhealthy() -> None:
    assert _health("127.0.0.1:1", "--timeout", "1") == 1
    assert _health("127.0.0.1:1", "--node", "scorer", "--timeout", "1") == 1
