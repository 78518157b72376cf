from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from tersely.errors import RedisUnreachable
from tersely.queue import WorkStream, connect
from tersely.queue import embedded as module
from tersely.queue.embedded import EmbeddedServer
from tersely.types import GroupId

PARENT = """
import sys, time
from pathlib import Path
from tersely.queue.embedded import EmbeddedServer
from tersely.types import GroupId
server = EmbeddedServer(Path(sys.argv[1]))
server.start()
sys.stdout.write(f"{server.pid} {server.url}\\n")
sys.stdout.flush()
time.sleep(60)
"""


def wait_gone(pid: int) -> bool:
    for _ in range(150):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.02)
    return False


def test_server_listens_on_loopback_and_never_evicts(tmp_path: Path):
    with EmbeddedServer(tmp_path / "new folder") as server, connect(server.url) as client:
        config = client.config_get("maxmemory-policy", "appendonly", "appendfsync", "bind")
        assert config == {
            b"maxmemory-policy": b"noeviction",
            b"appendonly": b"yes",
            b"appendfsync": b"everysec",
            b"bind": b"127.0.0.1",
        } or config == {
            "maxmemory-policy": "noeviction",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "bind": "127.0.0.1",
        }
        assert {c.laddr.ip for c in psutil.Process(server.pid).net_connections() if c.status == "LISTEN"} == {
            "127.0.0.1"
        }
        pid = server.pid
    assert not psutil.pid_exists(pid)
    assert not server.alive
    server.stop()


def test_data_and_url_survive_a_restart(tmp_path: Path):
    server = EmbeddedServer(tmp_path)
    server.start()
    try:
        url = server.url
        with connect(url) as client:
            stream = WorkStream(client, "t:{r}:prompts", "rollout", "a", lease_seconds=5, quarantine_key="q")
            stream.create()
            stream.add(GroupId("g1"), b"p")
            os.kill(server.pid, signal.SIGTERM)
            assert wait_gone(server.pid)
            assert not server.alive
            with pytest.raises(RedisUnreachable):
                stream.lease(1, 0)
            server.start()
            server.start()
            assert server.url == url
            assert [lease.group_id for lease in stream.lease(1, 0)] == ["g1"]
    finally:
        server.stop()


def test_start_in_a_thread_outlives_the_thread(tmp_path: Path):
    server = EmbeddedServer(tmp_path)
    thread = threading.Thread(target=server.start)
    thread.start()
    thread.join()
    try:
        time.sleep(0.1)
        assert server.alive
    finally:
        server.stop()


def test_port_taken_in_between_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        free = module._free_port
        ports = iter([taken.getsockname()[1]])
        monkeypatch.setattr(module, "_free_port", lambda: next(ports, None) or free())
        with EmbeddedServer(tmp_path) as server, connect(server.url) as client:
            assert client.ping()
            assert not server.url.endswith(f":{taken.getsockname()[1]}")


def test_server_that_can_not_start_names_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "get_binary_path", lambda: Path("/bin/false"))
    server = EmbeddedServer(tmp_path)
    with pytest.raises(RedisUnreachable) as caught:
        server.start()
    assert "valkey.log" in caught.value.message
    assert not server.alive


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
def test_server_dies_with_a_killed_parent(tmp_path: Path):
    with subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline().split()[0])
        assert psutil.pid_exists(pid)
        parent.kill()
    assert wait_gone(pid)


def test_left_over_server_of_the_folder_is_ended_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    orphan = EmbeddedServer(tmp_path)
    orphan.start()
    pid = orphan.pid
    try:
        with EmbeddedServer(tmp_path) as server:
            assert server.pid != pid
            assert not orphan.alive
            with connect(server.url) as client:
                assert client.ping()
    finally:
        orphan.stop()


def test_pid_file_of_a_foreign_process_is_left_alone(tmp_path: Path):
    (tmp_path / "valkey.pid").write_text(f"{os.getpid()}\n")
    with EmbeddedServer(tmp_path) as server:
        assert server.alive


def test_unstarted_server_has_no_address(tmp_path: Path):
    with pytest.raises(RuntimeError, match="not been started"):
        _ = EmbeddedServer(tmp_path).url
