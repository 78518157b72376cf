"""The option that names engines for their contract suite, and fixtures for every test that needs a queue server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from tersely.queue import connect
from tersely.queue.embedded import EmbeddedServer


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds --engine NAME."""
    parser.addoption(
        "--engine",
        action="append",
        metavar="NAME",
        help="run the engine contract suite (tests/contract/engine) on this engine; may be given again "
        "(default: torch, mlx and stub)",
    )


@pytest.fixture(scope="session", autouse=True)
def _no_identity_of_this_machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Certificates of whoever runs the tests stay out of them, in child processes too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TERSELY_IDENTITY", str(tmp_path_factory.mktemp("identity")))
        yield


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
