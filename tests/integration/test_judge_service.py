"""`tersely judge` and `tersely judge-file` as real processes; they find DeepEval's environment themselves."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import redis
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tersely.config.schema import Recipe
from tersely.errors import ConfigValue, JudgeNotConfigured
from tersely.node.heartbeat import read_nodes
from tersely.node.servicer import NodeServicer
from tersely.queue import RunKeys
from tersely.rpc.client import call, dial
from tersely.rpc.server import GrpcServer
from tersely.testing.judge_rules import AXES
from tersely.testing.judge_server import RuleJudgeServer
from tersely.types import RunId
from tersely.v1 import judge_pb2, judge_pb2_grpc

ROWS = [
    {
        "id": "a",
        "document": "Station one measured warming oceans during summer.",
        "completion": "Station measured oceans.",
    },
    {
        "id": "b",
        "document": "Painters restored frescoes within ancient chapels.",
        "completion": "Painters purple chapels.",
    },
]
COMMAND = [sys.executable, "-m", "tersely.cli", "judge"]


@pytest.fixture
def rules() -> Iterator[RuleJudgeServer]:
    with RuleJudgeServer() as server:
        yield server


def expected(rules: RuleJudgeServer, row: dict[str, str]) -> dict[str, Any]:
    return {axis: pytest.approx(rules.score(axis, row["document"], row["completion"]) / 10) for axis in AXES}


def judge_file(folder: Path, *options: str, rows: str | None = None) -> subprocess.CompletedProcess[str]:
    source = folder / "in.jsonl"
    source.write_text(rows or "".join(json.dumps(row) + "\n" for row in ROWS))
    command = [sys.executable, "-m", "tersely.cli", "judge-file", str(source), "-o", str(folder / "out.jsonl")]
    return subprocess.run([*command, *options], capture_output=True, text=True, timeout=110)


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
        return call(health_pb2_grpc.HealthStub(channel).Check, request, address=address, deadline_seconds=100).status


def test_process_is_healthy_and_the_judging_service_is_not_serving(
    judge: tuple[str, subprocess.Popen[bytes]],
) -> None:
    address, process = judge
    assert health(address, "") == health_pb2.HealthCheckResponse.SERVING
    assert health(address, "tersely.v1.JudgeService") == health_pb2.HealthCheckResponse.NOT_SERVING
    code, seconds = end(process)
    assert code == 0
    assert seconds < 20


def test_a_judgement_is_refused_with_kind_and_way_out(judge: tuple[str, subprocess.Popen[bytes]]) -> None:
    address, _ = judge
    request = judge_pb2.JudgeRequest(document="d", summary="s")
    with dial(address) as channel:
        method = judge_pb2_grpc.JudgeServiceStub(channel).Judge
        with pytest.raises(JudgeNotConfigured) as caught:
            call(method, request, address=address, deadline_seconds=100)
        with pytest.raises(grpc.RpcError) as raw:
            method(request, timeout=10)
    assert caught.value.message == "no judge endpoint configured"
    assert caught.value.way_out
    assert raw.value.code() == grpc.StatusCode.FAILED_PRECONDITION  # type: ignore[attr-defined]


def test_a_judge_with_an_endpoint_answers_over_grpc_and_takes_jobs(
    rules: RuleJudgeServer, valkey_url: str, valkey_client: redis.Redis, tmp_path: Path
) -> None:
    port = free_port()
    settings = {"port": port, "endpoint": rules.url, "cache": str(tmp_path / "cache")}
    words = [word for name, value in settings.items() for word in ("--set", f"judge.{name}={json.dumps(value)}")]
    process = subprocess.Popen([*COMMAND, *words, "--redis-url", valkey_url], stderr=subprocess.DEVNULL)
    try:
        address = f"127.0.0.1:{port}"
        requests = [
            judge_pb2.JudgeRequest(id=row["id"], document=row["document"], summary=row["completion"]) for row in ROWS
        ]
        requests.append(judge_pb2.JudgeRequest(id="bare", summary="s"))
        with dial(address) as channel:
            stub = judge_pb2_grpc.JudgeServiceStub(channel)
            batch = judge_pb2.JudgeBatchRequest(requests=requests)
            answer = call(stub.JudgeBatch, batch, address=address, deadline_seconds=100)
            again = call(stub.Judge, requests[0], address=address, deadline_seconds=60)
            too_many = judge_pb2.JudgeBatchRequest(requests=[judge_pb2.JudgeRequest()] * 513)
            with pytest.raises(ConfigValue, match="at most 512"):
                call(stub.JudgeBatch, too_many, address=address, deadline_seconds=60)
        assert [response.id for response in answer.responses] == ["a", "b", "bare"]
        for row, response in zip(ROWS, answer.responses, strict=False):
            assert {axis.name: axis.score for axis in response.axes} == expected(rules, row)
            assert response.composite == pytest.approx(sum(axis.score for axis in response.axes))
        bare = answer.responses[2]
        assert {axis.error for axis in bare.axes} == {"no_document"}
        assert not any(axis.HasField("score") for axis in bare.axes)
        assert not bare.HasField("composite")
        assert not bare.HasField("passed")
        assert (again.calls, {axis.cached for axis in again.axes}) == (0, {True})
        assert rules.calls == 8
        done = judge_file(tmp_path, "--redis", valkey_url)
        assert done.returncode == 0, done.stderr
        lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
        assert [line["id"] for line in lines] == ["a", "b"]
        assert {name: axis["score"] for name, axis in lines[1]["axes"].items()} == expected(rules, ROWS[1])
        assert rules.calls == 8
        assert list(valkey_client.scan_iter("tj:*")) == []
        assert end(process)[0] == 0
    finally:
        process.kill()
        process.wait()


def test_a_file_is_judged_once_and_then_comes_from_the_cache(rules: RuleJudgeServer, tmp_path: Path) -> None:
    options = ("--base-url", rules.url, "--model", "rule-judge", "--cache", str(tmp_path / "cache"), "--json")
    first = judge_file(tmp_path, *options)
    assert first.returncode == 0, first.stderr
    lines = (tmp_path / "out.jsonl").read_text()
    parsed = [json.loads(line) for line in lines.splitlines()]
    assert [line["id"] for line in parsed] == ["a", "b"]
    assert [{name: axis["score"] for name, axis in line["axes"].items()} for line in parsed] == [
        expected(rules, row) for row in ROWS
    ]
    assert json.loads(first.stdout)["calls"]["calls"] == rules.calls == 8
    second = judge_file(tmp_path, *options)
    assert json.loads(second.stdout)["calls"]["cache_hits"] == 8
    assert rules.calls == 8
    assert (tmp_path / "out.jsonl").read_text() == lines


def test_what_trying_again_cannot_mend_ends_a_file_with_its_kind(rules: RuleJudgeServer, tmp_path: Path) -> None:
    rules.api_key = "secret"
    options = ("--base-url", rules.url, "--model", "rule-judge", "--cache", str(tmp_path / "cache"))
    done = judge_file(tmp_path, *options)
    assert done.returncode == 90
    assert "error[judge_endpoint]" in done.stderr
    assert "HTTP 401" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("out*"))


def test_a_line_that_cannot_be_judged_is_named_before_anybody_is_asked(rules: RuleJudgeServer, tmp_path: Path) -> None:
    rows = '{"id": "a", "completion": "c", "document": "d"}\n{"id": "b"}\n'
    done = judge_file(tmp_path, "--base-url", rules.url, rows=rows)
    assert done.returncode == 22
    assert "in.jsonl:2: the row has no field 'completion'" in done.stderr
    assert rules.calls == 0


def test_in_a_run_it_shows_as_a_node_and_says_what_it_lacks(valkey_client: redis.Redis, valkey_url: str) -> None:
    run_id = RunId("r-judge")
    keys = RunKeys(run_id)
    server = GrpcServer()
    server.add(NodeServicer(run_id, Recipe().model_dump_json(), valkey_url, incarnation=1).register)
    with server:
        process = subprocess.Popen([*COMMAND, "--trainer", server.address], stderr=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 100
            while not (nodes := [n for n in read_nodes(valkey_client, keys) if n.state == "idle"]):
                assert time.monotonic() < deadline, "no heartbeat"
                time.sleep(0.05)
            assert (nodes[0].pid, nodes[0].detail) == (process.pid, "no judge endpoint configured")
            assert end(process)[0] == 0
            assert read_nodes(valkey_client, keys) == []
        finally:
            process.kill()
            process.wait()
