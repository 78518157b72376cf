"""`tersely judge` as a real process: healthy, clear, quick to end."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import grpc
import pytest
import redis
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tersely.config.schema import Recipe
from tersely.errors import JudgeNotConfigured
from tersely.node.heartbeat import read_nodes
from tersely.node.servicer import NodeServicer
from tersely.queue import RunKeys
from tersely.rpc.client import call, dial
from tersely.rpc.server import GrpcServer
from tersely.types import RunId
from tersely.v1 import judge_pb2, judge_pb2_grpc

COMMAND = [sys.executable, "-m", "tersely.cli", "judge"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def end(process: subprocess.Popen[bytes]) -> tuple[int, float]:
    """Exit code and seconds that SIGTERM took."""
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    return process.wait(20), time.monotonic() - began


@pytest.fixture
def judge() -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    port = free_port()
    process = subprocess.Popen([*COMMAND, "--set", f"judge.port={port}"], stderr=subprocess.DEVNULL)
    yield f"127.0.0.1:{port}", process
    if process.poll() is None:
        process.kill()
    process.wait()


def health(address: str, service: str) -> health_pb2.HealthCheckResponse.ServingStatus.ValueType:
    with dial(address) as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        return call(health_pb2_grpc.HealthStub(channel).Check, request, address=address, deadline_seconds=30).status


def test_process_is_healthy_and_the_judging_service_is_not_serving(
    judge: tuple[str, subprocess.Popen[bytes]],
) -> None:
    address, process = judge
    assert health(address, "") == health_pb2.HealthCheckResponse.SERVING
    assert health(address, "tersely.v1.JudgeService") == health_pb2.HealthCheckResponse.NOT_SERVING
    code, seconds = end(process)
    assert code == 0
    assert seconds < 5


def test_a_judgement_is_refused_with_kind_and_way_out(judge: tuple[str, subprocess.Popen[bytes]]) -> None:
    address, _ = judge
    request = judge_pb2.JudgeRequest(document="d", summary="s")
    with dial(address) as channel:
        method = judge_pb2_grpc.JudgeServiceStub(channel).Judge
        with pytest.raises(JudgeNotConfigured) as caught:
            call(method, request, address=address, deadline_seconds=30)
        with pytest.raises(grpc.RpcError) as raw:
            method(request, timeout=10)
    assert caught.value.message == "no judge endpoint configured"
    assert caught.value.way_out
    assert raw.value.code() == grpc.StatusCode.FAILED_PRECONDITION  # type: ignore[attr-defined]


def test_an_endpoint_is_refused_at_start_instead_of_pretended() -> None:
    done = subprocess.run(
        [*COMMAND, "--set", "judge.endpoint=http://127.0.0.1:1/v1"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 13
    assert "can't judge with an endpoint yet" in done.stderr
    assert "Traceback" not in done.stderr


def test_in_a_run_it_shows_as_a_node_and_says_what_it_lacks(valkey_client: redis.Redis, valkey_url: str) -> None:
    run_id = RunId("r-judge")
    keys = RunKeys(run_id)
    server = GrpcServer()
    server.add(NodeServicer(run_id, Recipe().model_dump_json(), valkey_url, incarnation=1).register)
    with server:
        process = subprocess.Popen([*COMMAND, "--trainer", server.address], stderr=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 30
            while not (nodes := [n for n in read_nodes(valkey_client, keys) if n.state == "idle"]):
                assert time.monotonic() < deadline, "no heartbeat"
                time.sleep(0.05)
            assert (nodes[0].pid, nodes[0].detail) == (process.pid, "no judge endpoint configured")
            assert end(process)[0] == 0
            assert read_nodes(valkey_client, keys) == []
        finally:
            process.kill()
            process.wait()
