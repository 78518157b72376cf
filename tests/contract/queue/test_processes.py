"""Consumers and servers that die."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import redis

from tersely.queue import RunKeys, WorkStream, connect
from tersely.types import GroupId

CONSUMER = """
import sys, time
from tersely.queue import LeaseKeeper, WorkStream, connect
url, key, quarantine = sys.argv[1:]
stream = WorkStream(connect(url), key, "rollout", "doomed", lease_seconds=0.3, quarantine_key=quarantine)
with LeaseKeeper(stream) as keeper:
    (lease,) = stream.lease(1, 5)
    keeper.hold(lease)
    sys.stdout.write(lease.group_id + "\\n")
    sys.stdout.flush()
    time.sleep(60)
"""


def test_lease_of_a_killed_process_goes_to_another(
    make_stream: Callable[..., WorkStream], server_url: str, keys: RunKeys
):
    survivor = make_stream("survivor")
    survivor.add(GroupId("g1"), b"p")
    command = [sys.executable, "-c", CONSUMER, server_url, keys.prompts, keys.quarantine]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as doomed:
        try:
            assert doomed.stdout is not None
            assert doomed.stdout.readline().strip() == "g1"
            assert survivor.lease(1, 0.7) == []
        finally:
            doomed.kill()
        killed = time.monotonic()
        (lease,) = survivor.lease(1, 3.0)
    assert (lease.group_id, lease.strikes, lease.expired_leases) == ("g1", 0, 1)
    assert time.monotonic() - killed < 2.5
    survivor.forward(lease, keys.completions, b"c")


class ReplyLoser:
    """A relay that swallows the next reply to a command with this word and closes the connection."""

    def __init__(self, port: int, word: bytes) -> None:
        self._port, self._word = port, word
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.swallowed = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                inner, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._relay, args=(inner,), daemon=True).start()

    def _relay(self, inner: socket.socket) -> None:
        with inner, socket.create_connection(("127.0.0.1", self._port)) as outer:
            while data := inner.recv(1 << 20):
                outer.sendall(data)
                reply = outer.recv(1 << 20)
                if self._word in data and not self.swallowed:
                    self.swallowed += 1
                    return
                inner.sendall(reply)

    def close(self) -> None:
        self._listener.close()


def test_lost_reply_doubles_the_hand_over_but_never_loses_it(
    make_stream: Callable[..., WorkStream], server_url: str, keys: RunKeys, client: redis.Redis
):
    make_stream("a").add(GroupId("g1"), b"p")
    relay = ReplyLoser(int(server_url.rpartition(":")[2]), b"completions")
    try:
        with connect(f"redis://127.0.0.1:{relay.port}") as flaky:
            stream = WorkStream(flaky, keys.prompts, "rollout", "a", lease_seconds=5, quarantine_key=keys.quarantine)
            (lease,) = stream.lease(1, 1)
            stream.forward(lease, keys.completions, b"c")
    finally:
        relay.close()
    assert relay.swallowed == 1
    copies = [(fields[b"g"], fields[b"p"]) for _, fields in client.xrange(keys.completions)]
    assert copies == [(b"g1", b"c")] * 2
    assert client.xlen(keys.prompts) == 0
