import socket
import threading
import time
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tersely.errors import JudgeNotConfigured, PlaintextRefused, PortBusy, RpcError, TrainerUnreachable
from tersely.rpc.client import call, dial
from tersely.rpc.errors import errors_as_status
from tersely.rpc.server import GrpcServer
from tersely.v1 import judge_pb2, judge_pb2_grpc

SERVING = health_pb2.HealthCheckResponse.SERVING


class Judge(judge_pb2_grpc.JudgeServiceServicer):
    async def Judge(self, request: judge_pb2.JudgeRequest, context: Any) -> judge_pb2.JudgeResponse:  # noqa: N802
        async with errors_as_status(context):
            if request.summary == "refuse":
                raise JudgeNotConfigured("No judge endpoint is configured: ü.", "Set judge.endpoint.")
            if request.summary == "break":
                raise RuntimeError("secret detail")
        return judge_pb2.JudgeResponse(axes=[judge_pb2.JudgeAxis(name="clarity")])


def serve() -> GrpcServer:
    server = GrpcServer()
    server.add(lambda inner: judge_pb2_grpc.add_JudgeServiceServicer_to_server(Judge(), inner))
    return server


def judge(address: str, summary: str) -> judge_pb2.JudgeResponse:
    with dial(address) as channel:
        stub = judge_pb2_grpc.JudgeServiceStub(channel)
        return call(stub.Judge, judge_pb2.JudgeRequest(summary=summary), address=address, deadline_seconds=10)


def test_a_server_answers_calls_and_health_checks() -> None:
    with serve() as server, dial(server.address) as channel:
        assert judge(server.address, "fine").axes[0].name == "clarity"
        check = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        assert check.status == SERVING


def test_an_error_arrives_in_its_own_class_with_message_and_way_out() -> None:
    with serve() as server, pytest.raises(JudgeNotConfigured) as caught:
        judge(server.address, "refuse")
    assert caught.value.message == "No judge endpoint is configured: ü."
    assert caught.value.way_out == "Set judge.endpoint."


def test_an_unexpected_error_tells_the_caller_no_details() -> None:
    with serve() as server, pytest.raises(RpcError) as caught:
        judge(server.address, "break")
    assert type(caught.value) is RpcError
    assert "INTERNAL" in caught.value.message
    assert "secret" not in str(caught.value)


def test_a_taken_port_is_port_busy_also_beside_another_grpc_server() -> None:
    with serve() as server:
        port = int(server.address.rpartition(":")[2])
        with pytest.raises(PortBusy, match=rf"127\.0\.0\.1:{port}.*in use"):
            GrpcServer(port=port).start()
        with pytest.raises(PortBusy):
            GrpcServer("localhost", port).start()
        assert judge(server.address, "fine").axes


def test_a_port_taken_by_a_plain_socket_is_port_busy() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(PortBusy, match="in use"):
        GrpcServer(port=taken.getsockname()[1]).start()


def test_an_address_of_another_machine_says_why() -> None:
    with pytest.raises(PortBusy, match="requested address"):
        GrpcServer("192.0.2.1", 50999, insecure_lan=True).start()


def test_a_failed_start_leaves_no_thread() -> None:
    before = threading.active_count()
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(PortBusy):
        GrpcServer(port=taken.getsockname()[1]).start()
    assert threading.active_count() == before


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.1.5", "mini.local"])
def test_plaintext_beyond_loopback_is_refused(host: str) -> None:
    with pytest.raises(PlaintextRefused, match="unencrypted") as caught:
        GrpcServer(host).start()
    assert "insecure_lan" in caught.value.way_out


def test_all_addresses_can_be_asked_for_and_dialled_locally() -> None:
    server = GrpcServer("0.0.0.0", insecure_lan=True)
    address = server.start()
    try:
        assert address.startswith("127.0.0.1:")
        with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), timeout=5):
            pass
    finally:
        server.stop()


def test_stop_ends_watches_of_health_and_frees_the_port() -> None:
    server = serve()
    address = server.start()
    with dial(address) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=30)
        assert next(watch).status == SERVING
        started = time.monotonic()
        stopper = threading.Thread(target=server.stop, args=(0.5,))
        stopper.start()
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        with pytest.raises(grpc.RpcError):
            next(watch)
        stopper.join()
        assert time.monotonic() - started < 10
    server.stop()
    socket.create_server(("127.0.0.1", int(address.rpartition(":")[2]))).close()


def test_a_call_to_nobody_ends_at_its_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    started = time.monotonic()
    with dial(f"127.0.0.1:{port}") as channel, pytest.raises(TrainerUnreachable, match=str(port)):
        call(
            judge_pb2_grpc.JudgeServiceStub(channel).Judge,
            judge_pb2.JudgeRequest(),
            address=f"127.0.0.1:{port}",
            deadline_seconds=0.5,
        )
    assert 0.3 < time.monotonic() - started < 10


def test_a_call_waits_for_a_server_that_starts_later() -> None:
    server = serve()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    server._wanted = server._wanted._replace(port=port)
    timer = threading.Timer(0.5, server.start)
    timer.start()
    try:
        assert judge(f"127.0.0.1:{port}", "fine").axes
    finally:
        timer.join()
        server.stop()


def test_messages_over_four_mebibytes_are_refused() -> None:
    with serve() as server, pytest.raises(RpcError, match="RESOURCE_EXHAUSTED"):
        judge(server.address, "x" * (4 << 20))
