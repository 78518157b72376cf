"""Servers that refuse, lack memory or are not there: one clear error each, never a password in it."""

from __future__ import annotations

import socket
import time
import traceback
from collections.abc import Callable

import pytest
import redis

from tersely.errors import ConfigValue, QueueError, RedisAuth, RedisOutOfMemory, RedisTooOld, RedisUnreachable
from tersely.queue import RunKeys, StreamDepth, WorkStream, connect, redis_errors
from tersely.queue.connect import check_version
from tersely.types import GroupId

SECRET = "hunter2-very-secret"
StartRedis = Callable[..., str]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def everything_said(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)) + repr(error) + str(error)


def test_nothing_there_is_unreachable_with_a_way_out():
    began = time.monotonic()
    with pytest.raises(RedisUnreachable) as caught:
        connect(f"redis://user:{SECRET}@127.0.0.1:{free_port()}")
    assert "127.0.0.1" in caught.value.message
    assert "queue.url" in caught.value.way_out
    assert SECRET not in everything_said(caught.value)
    assert time.monotonic() - began < 3


def test_silent_server_is_unreachable_after_the_timeout():
    began = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(RedisUnreachable):
            connect(f"redis://127.0.0.1:{port}", timeout_seconds=0.1)
    assert time.monotonic() - began < 1


@pytest.mark.parametrize("url", [f"http://:{SECRET}@h", f"redis://:{SECRET}@h:port", f"redis://h:{SECRET}"])
def test_bad_url_is_a_config_error_without_the_password(url: str):
    with pytest.raises(ConfigValue) as caught:
        connect(url)
    assert SECRET not in everything_said(caught.value)


def test_wrong_or_missing_password_is_an_auth_error(start_redis: StartRedis):
    url = start_redis("--requirepass", SECRET)
    began = time.monotonic()
    for attempt in (None, "wrong-" + SECRET[::-1]):
        with pytest.raises(RedisAuth) as caught:
            connect(url, password=attempt)
        assert "password_env" in caught.value.way_out
        assert SECRET not in everything_said(caught.value)
        assert SECRET[::-1] not in everything_said(caught.value)
    assert time.monotonic() - began < 3
    with connect(url.replace("//", "//:wrong@"), password=SECRET) as client:
        assert client.ping()
        assert SECRET not in repr(client)


def test_missing_permission_is_an_auth_error_that_names_the_command(start_redis: StartRedis, keys: RunKeys):
    url = start_redis("--user", "roll", "on", f">{SECRET}", "~t:*", "-@all", "+ping", "+hello")
    with connect(url, username="roll", password=SECRET) as client:
        stream = WorkStream(client, keys.prompts, "rollout", "a", lease_seconds=1, quarantine_key=keys.quarantine)
        with pytest.raises(RedisAuth, match="xadd") as caught:
            stream.add(GroupId("g1"), b"p")
        assert SECRET not in everything_said(caught.value)


def test_role_user_can_do_its_hop_and_nothing_more(start_redis: StartRedis, keys: RunKeys):
    rules = ["on", f">{SECRET}", "resetkeys", "resetchannels", "-@all", "+multi", "+exec", "+ping", "+hello"]
    rules += [f"(+xadd ~{keys.completions})", f"(+xadd ~{keys.quarantine})"]
    rules += [f"(+xadd +xreadgroup +xack +xdel +xautoclaim +xclaim +xpending +xlen +xgroup|create ~{keys.prompts})"]
    url = start_redis()
    with connect(url) as admin:
        admin.execute_command("ACL", "SETUSER", "roll", *rules)
        options = {"lease_seconds": 0.1, "quarantine_key": keys.quarantine}
        WorkStream(admin, keys.prompts, "rollout", "admin", **options).add(GroupId("g1"), b"p")
        with connect(url, username="roll", password=SECRET) as client:
            stream = WorkStream(client, keys.prompts, "rollout", "a", **options)
            stream.create()
            stream.lease(1, 0)
            time.sleep(0.15)
            stream.fail(stream.lease(1, 0)[0], "k", "m")
            (lease,) = stream.renew(stream.lease(1, 0))
            stream.forward(lease, keys.completions, b"c")
            assert stream.depth() == StreamDepth(0, 0)
            with pytest.raises(RedisAuth):
                WorkStream(client, keys.scored, "trainer", "a", **options).add(GroupId("g1"), b"p")
        assert admin.xlen(keys.completions) == 1


def test_full_server_refuses_work_and_loses_none(start_redis: StartRedis, keys: RunKeys):
    url = start_redis("--maxmemory-policy", "noeviction")
    with connect(url) as client:
        stream = WorkStream(client, keys.prompts, "rollout", "a", lease_seconds=5, quarantine_key=keys.quarantine)
        stream.create()
        stream.add(GroupId("g1"), b"p")
        stream.add(GroupId("done"), b"p")
        lease, done = stream.lease(2, 0)
        client.config_set("maxmemory", "1")  # one byte: full whatever an empty server of this build holds
        with pytest.raises(RedisOutOfMemory, match="maxmemory"):
            stream.add(GroupId("g2"), b"x" * 1000)
        for refused in (
            lambda: stream.forward(lease, keys.completions, b"c"),
            lambda: stream.give_back(lease),
            lambda: stream.fail(lease, "k", "m"),
        ):
            with pytest.raises(RedisOutOfMemory):
                refused()
        assert stream.depth() == StreamDepth(waiting=0, leased=2)
        assert client.xlen(keys.completions) == 0
        stream.ack([done])
        assert stream.renew([lease]) == [lease]
        assert stream.depth() == StreamDepth(waiting=0, leased=1)
        client.config_set("maxmemory", "0")
        stream.forward(lease, keys.completions, b"c")
        assert (stream.depth().total, client.xlen(keys.completions)) == (0, 1)


def test_key_of_another_type_is_a_queue_error(client: redis.Redis, keys: RunKeys):
    client.set(keys.prompts, "not a stream")
    stream = WorkStream(client, keys.prompts, "rollout", "a", lease_seconds=1, quarantine_key=keys.quarantine)
    with pytest.raises(QueueError, match="WRONGTYPE"):
        stream.add(GroupId("g1"), b"p")


@pytest.mark.parametrize(("server", "version"), [("redis", "6.2.14"), ("valkey", "7.0.1"), ("keydb", "6.3.4")])
def test_old_servers_are_refused(server: str, version: str):
    with pytest.raises(RedisTooOld, match=version):
        check_version(server, version, "somewhere")


@pytest.mark.parametrize(("server", "version"), [("redis", "7.0.15"), ("valkey", "9.1.2"), ("redis", "255.255.255")])
def test_new_servers_are_welcome(server: str, version: str):
    check_version(server, version, "somewhere")


def test_other_exceptions_pass_through_untouched():
    with pytest.raises(ZeroDivisionError), redis_errors():
        raise ZeroDivisionError
