"""Fixtures for every test that needs a queue server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from tersely.queue import connect
from tersely.queue.embedded import EmbeddedServer


@pytest.fixture(scope="session")
def valkey_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of an embedded server that lives as long as the session; what is in it belongs to nobody."""
    with EmbeddedServer(tmp_path_factory.mktemp("valkey")) as server:
        yield server.url


@pytest.fixture
def valkey_client(valkey_url: str) -> Iterator[redis.Redis]:
    """Client of the embedded server, which is empty at the start of each test."""
    with connect(valkey_url) as client:
        client.flushall()
        yield client
