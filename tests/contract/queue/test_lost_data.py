"""What becomes of the queues when the server is killed, and its file is cut short, damaged or gone."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tersely.errors import RedisUnreachable
from tersely.queue import WorkStream, connect
from tersely.queue.embedded import EmbeddedServer
from tersely.types import GroupId

KEY = "t:{r}:prompts"
GROUPS = [GroupId(f"g{number:02d}") for number in range(40)]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    server = EmbeddedServer(tmp_path / "valkey")
    server.start()
    yield server
    server.stop()


def filled(server: EmbeddedServer) -> WorkStream:
    client = connect(server.url)
    stream = WorkStream(client, KEY, "rollout", "a", lease_seconds=30, quarantine_key="q")
    stream.create()
    for group_id in GROUPS:
        stream.add(group_id, b"p" * 100)
    client.execute_command("CONFIG SET", "appendfsync", "always")  # type: ignore[no-untyped-call]
    stream.add(GroupId("last"), b"p")
    return stream


def data_file(server: EmbeddedServer) -> Path:
    (path,) = (server._folder / "appendonlydir").glob("*.incr.aof")
    return path


def killed(server: EmbeddedServer) -> None:
    os.kill(server.pid, signal.SIGKILL)
    while server.alive:
        pass


def test_a_killed_server_comes_back_with_everything(server: EmbeddedServer) -> None:
    stream, url = filled(server), server.url
    killed(server)
    with pytest.raises(RedisUnreachable):
        stream.depth()
    server.start()
    assert server.url == url
    assert [lease.group_id for lease in stream.lease(100, 0)] == [*GROUPS, "last"]
    assert server.damaged == 0


@pytest.mark.parametrize("cut", [1, 40, 1000])
def test_a_file_cut_short_costs_its_end_only(server: EmbeddedServer, cut: int) -> None:
    stream = filled(server)
    killed(server)
    path = data_file(server)
    os.truncate(path, path.stat().st_size - cut)
    server.start()
    found = [lease.group_id for lease in stream.lease(100, 0)]
    assert found == [*GROUPS, "last"][: len(found)]
    assert len(GROUPS) - 10 <= len(found) <= len(GROUPS)
    stream.add(GroupId("new"), b"p")
    assert [lease.group_id for lease in stream.lease(1, 0)] == ["new"]
    assert server.damaged == 0


def scramble(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 200] = b"\xff" * 200
    path.write_bytes(data)


def spoil_manifest(path: Path) -> None:
    (manifest,) = path.parent.glob("*.manifest")
    manifest.write_text("what is this\n")


def lose_base(path: Path) -> None:
    (base,) = path.parent.glob("*.base.*")
    base.unlink()


@pytest.mark.parametrize("spoil", [scramble, spoil_manifest, lose_base])
def test_a_damaged_file_is_put_aside_and_the_server_comes_back_empty(
    server: EmbeddedServer, spoil: Callable[[Path], None]
) -> None:
    stream, url = filled(server), server.url
    killed(server)
    spoil(data_file(server))
    server.start()
    assert server.url == url
    assert server.damaged == 1
    assert stream.lease(1, 0) == []
    stream.add(GroupId("new"), b"p")
    assert [lease.group_id for lease in stream.lease(1, 0)] == ["new"]
    assert len(list(server._folder.glob("appendonlydir.damaged-*"))) == 1
