import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tersely.node.heartbeat import LIVES_SECONDS, Heartbeater, read_nodes
from tersely.node.roles import role_name
from tersely.queue.embedded import EmbeddedServer
from tersely.queue.keys import RunKeys
from tersely.types import NodeId, RunId


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(tmp_path_factory.mktemp("valkey")) as running:
        yield running


@pytest.fixture
def client(server: EmbeddedServer) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(server.url) as connected:
        connected.flushall()
        yield connected


KEYS = RunKeys(RunId("r-1"))


def test_a_heartbeat_tells_what_was_updated(client: redis.Redis) -> None:
    with Heartbeater(client, KEYS, NodeId("rollout-a"), "rollout", every_seconds=0.05) as beats:
        beats.update(state="generating", tokens_per_second=12.5, policy_version=3, leases=2)
        deadline = time.monotonic() + 10
        while (node := read_nodes(client, KEYS)[0]).state != "generating" and time.monotonic() < deadline:
            time.sleep(0.02)
        assert (node.state, node.tokens_per_second, node.policy_version, node.leases) == ("generating", 12.5, 3, 2)
        assert role_name(node.role) == "rollout"
        assert node.pid > 0
        assert node.time >= node.started > 1_700_000_000


def test_an_update_keeps_what_it_does_not_name(client: redis.Redis) -> None:
    beats = Heartbeater(client, KEYS, NodeId("scorer-a"), "scorer")
    beats.update(detail="waiting for groups", last_error="bad entry")
    beats.update(detail="", groups_finished=0)
    beats.beat()
    (node,) = read_nodes(client, KEYS)
    assert (node.detail, node.last_error, node.policy_version) == ("", "bad entry", -1)


def test_a_heartbeat_expires_and_the_dead_are_pruned(client: redis.Redis) -> None:
    for name in ("rollout-b", "rollout-a"):
        Heartbeater(client, KEYS, NodeId(name), "rollout").beat()
    assert [node.node_id for node in read_nodes(client, KEYS)] == ["rollout-a", "rollout-b"]
    assert 0 < int(client.ttl(KEYS.node(NodeId("rollout-a")))) <= LIVES_SECONDS
    client.delete(KEYS.node(NodeId("rollout-a")))
    assert [node.node_id for node in read_nodes(client, KEYS)] == ["rollout-b"]
    assert client.hkeys(KEYS.nodes) == [b"rollout-b"]


def test_leaving_removes_the_node_at_once(client: redis.Redis) -> None:
    beats = Heartbeater(client, KEYS, NodeId("rollout-a"), "rollout").start()
    assert len(read_nodes(client, KEYS)) == 1
    beats.leave()
    assert client.keys("*") == []


def test_a_broken_heartbeat_counts_as_dead(client: redis.Redis) -> None:
    client.hset(KEYS.nodes, "rollout-x", "?")
    client.set(KEYS.node(NodeId("rollout-x")), b"\xff\xff\xff")
    assert read_nodes(client, KEYS) == []


def test_heartbeats_outlive_a_redis_that_is_away(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with redis.Redis(port=port, retry=Retry(NoBackoff(), 0), socket_timeout=1) as client:
        beats = Heartbeater(client, KEYS, NodeId("rollout-a"), "rollout", every_seconds=0.02).start()
        deadline = time.monotonic() + 10
        while beats.missed < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert beats.missed >= 3
        beats.leave()
    assert capsys.readouterr().out.count("heartbeat_missed") == 1


def test_a_heartbeat_comes_back_with_redis(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path)
    server.start()
    url = server.url
    with redis.Redis.from_url(url, retry=Retry(NoBackoff(), 0), socket_timeout=2) as client:
        beats = Heartbeater(client, KEYS, NodeId("rollout-a"), "rollout", every_seconds=0.05).start()
        server.stop()
        deadline = time.monotonic() + 10
        while beats.missed == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert beats.missed > 0
        server.start()
        assert server.url == url
        try:
            while beats.missed and time.monotonic() < deadline + 10:
                time.sleep(0.01)
            assert [node.node_id for node in read_nodes(client, KEYS)] == ["rollout-a"]
            beats.leave()
        finally:
            server.stop()
