"""An authority in a folder of its own, and its server at work."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tersely.identity.authority import Authority
from tersely.identity.folder import FOLDER_ENV
from tersely.identity.gate import Gate
from tersely.identity.node import authority_folder, issue_locally
from tersely.identity.tokens import TokenBook
from tersely.node.servicer import NodeServicer
from tersely.rpc.address import Address, parse_address
from tersely.rpc.guard import Guard
from tersely.rpc.server import GrpcServer


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Authority:
    """The authority of this machine, which is the trainer's."""
    monkeypatch.setenv(FOLDER_ENV, str(tmp_path / "trainer-machine"))
    made = Authority.create(authority_folder())
    issue_locally("trainer", made, "host")
    return made


@dataclass(frozen=True)
class Trainer:
    """As others see it."""

    address: str
    join: Address
    tokens: TokenBook
    authority: Authority
    guard: Guard

    def token(self, role: str = "rollout") -> str:
        """A new one."""
        return self.tokens.create(self.authority.fingerprint, role).text


@pytest.fixture
def trainer(authority: Authority) -> Iterator[Trainer]:
    """A server with mTLS that nodes can join."""
    server = GrpcServer("0.0.0.0", role="trainer")
    server.add(NodeServicer("r-1", "{}", "redis://127.0.0.1:1", 1).register)
    gate = Gate.beside(server, "0.0.0.0", 0)
    assert gate is not None
    with server:
        join = gate.open(server.port)
        assert server._security is not None
        (guard,) = server._security.interceptors
        assert isinstance(guard, Guard)
        yield Trainer(server.address, parse_address(join), TokenBook(authority.folder), authority, guard)
        gate.close()
