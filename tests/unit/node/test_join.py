import re
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tersely.config.schema import Recipe, RunSection
from tersely.errors import ConfigValue, TrainerUnreachable
from tersely.node import join as join_module
from tersely.node.join import join
from tersely.node.roles import ROLES, role_name, role_to_proto
from tersely.node.servicer import NodeServicer, make_node_id
from tersely.rpc.server import GrpcServer
from tersely.v1 import node_pb2

RECIPE = Recipe(run=RunSection(steps=7, seed=3))


def serve(recipe_json: str, port: int = 0) -> GrpcServer:
    server = GrpcServer(port=port)
    server.add(NodeServicer("r-1", recipe_json, "redis://127.0.0.1:1", 4).register)
    return server


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


@pytest.fixture
def address() -> Iterator[str]:
    with serve(RECIPE.model_dump_json()) as server:
        yield server.address


def test_a_node_learns_all_it_needs_from_the_trainers_address(address: str) -> None:
    with join(address, "rollout") as joined:
        assert joined.recipe == RECIPE
        assert (joined.run_id, joined.redis_url, joined.incarnation) == ("r-1", "redis://127.0.0.1:1", 4)
        assert re.fullmatch(r"rollout-[A-Za-z0-9.-]+-\d+-[0-9a-f]{4}", joined.node_id)


def test_two_joins_of_one_process_get_two_ids(address: str) -> None:
    with join(address, "scorer") as one, join(address, "scorer") as two:
        assert one.node_id != two.node_id


def test_a_node_may_start_before_its_trainer(free_port: int) -> None:
    server = serve(RECIPE.model_dump_json(), free_port)
    timer = threading.Timer(0.7, server.start)
    timer.start()
    try:
        with join(f"127.0.0.1:{free_port}", "rollout", wait_seconds=30) as joined:
            assert joined.run_id == "r-1"
    finally:
        timer.join()
        server.stop()


def test_no_trainer_in_time_is_trainer_unreachable_with_a_way_out(
    free_port: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(join_module, "_LOG_EVERY_SECONDS", 0.2)
    monkeypatch.setattr(join_module, "_ATTEMPT_SECONDS", 0.2)
    started = time.monotonic()
    with pytest.raises(TrainerUnreachable, match=f"127.0.0.1:{free_port} within 1 s") as caught:
        join(f"127.0.0.1:{free_port}", "rollout", wait_seconds=1)
    assert 0.9 < time.monotonic() - started < 10
    assert caught.value.way_out
    assert "waiting_for_trainer" in capsys.readouterr().out


def test_waiting_ends_when_it_is_called_off(free_port: int) -> None:
    stop = threading.Event()
    stop.set()
    started = time.monotonic()
    with pytest.raises(TrainerUnreachable, match="Stopped"):
        join(f"127.0.0.1:{free_port}", "rollout", wait_seconds=60, stop=stop)
    assert time.monotonic() - started < 20


def test_a_recipe_of_another_version_is_a_config_value() -> None:
    with serve('{"run": {"stepps": 1}}') as server, pytest.raises(ConfigValue, match="does not know"):
        join(server.address, "rollout")


def test_a_malformed_address_is_a_config_value() -> None:
    with pytest.raises(ConfigValue, match="host:port"):
        join("mini.local", "rollout")


def test_odd_host_names_make_tame_ids() -> None:
    assert re.fullmatch(r"rollout-Jo-s-Mac-local-7-[0-9a-f]{4}", make_node_id("rollout", "Jo's {Mac}:local", 7))
    assert re.fullmatch(r"rollout-host-7-[0-9a-f]{4}", make_node_id("rollout", "ü", 7))


@pytest.mark.parametrize("role", ROLES)
def test_roles_have_names_and_numbers(role: str) -> None:
    assert role_name(role_to_proto(role)) == role


def test_an_unknown_role_is_refused() -> None:
    with pytest.raises(ValueError, match="cook"):
        role_to_proto("cook")
    assert role_name(node_pb2.NODE_ROLE_UNSPECIFIED) == "unspecified"
    assert role_name(node_pb2.NodeRole.ValueType(99)) == "unspecified"
