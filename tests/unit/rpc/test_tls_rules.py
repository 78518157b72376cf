"""When a connection is encrypted, and when it is refused to be plaintext."""

import socket
from pathlib import Path

import psutil
import pytest

from tersely.errors import ConfigValue, PlaintextRefused
from tersely.identity.authority import Authority
from tersely.identity.folder import FOLDER_ENV
from tersely.identity.node import authority_folder, issue_locally
from tersely.node.join import join
from tersely.node.servicer import NodeServicer
from tersely.queue.acl import NodeLogin
from tersely.rpc.address import PLAIN, TLS, Address, parse_address
from tersely.rpc.client import in_plaintext, uses_tls
from tersely.rpc.server import GrpcServer


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Authority:
    monkeypatch.setenv(FOLDER_ENV, str(tmp_path / "identity"))
    return Authority.create(authority_folder())


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("mini.local:7070", Address("mini.local", 7070)),
        ("tls://mini.local:7070", Address("mini.local", 7070, TLS)),
        ("plain://[fd00::2]:7070", Address("fd00::2", 7070, PLAIN)),
        (" tls://127.0.0.1:1 ", Address("127.0.0.1", 1, TLS)),
    ],
)
def test_an_address_may_say_how_it_is_spoken_to(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert str(address) == text.strip()
    assert "://" not in address.target


@pytest.mark.parametrize("text", ["http://mini.local:7070", "tls://", "tls://plain://mini:1", "tls:mini:7070"])
def test_other_schemes_are_refused(text: str) -> None:
    with pytest.raises(ConfigValue):
        parse_address(text)


def test_a_machine_that_has_joined_uses_tls_beyond_loopback_and_others_do_not(authority: Authority) -> None:
    lan, here = parse_address("192.0.2.5:7070"), parse_address("127.0.0.1:7070")
    assert not uses_tls(lan)
    issue_locally("rollout", authority, "host")
    assert uses_tls(lan)
    assert not uses_tls(here)
    assert uses_tls(parse_address("tls://127.0.0.1:7070"))
    assert not uses_tls(parse_address(in_plaintext("192.0.2.5:7070")))


def test_a_server_beyond_loopback_needs_a_certificate_of_its_role(authority: Authority) -> None:
    issue_locally("rollout", authority, "host")
    with pytest.raises(PlaintextRefused, match="role scorer"):
        GrpcServer("0.0.0.0", role="scorer").start()
    issue_locally("scorer", authority, "host")
    with GrpcServer("0.0.0.0", role="scorer") as server:
        assert server.address.startswith("tls://127.0.0.1:")


def test_on_loopback_nothing_changes_by_having_certificates(authority: Authority) -> None:
    issue_locally("trainer", authority, "host")
    with GrpcServer() as server:
        assert not server.secured
        assert server.address.startswith("127.0.0.1:")


def test_insecure_lan_is_plaintext_for_processes_of_this_machine_too(authority: Authority) -> None:
    issue_locally("trainer", authority, "host")
    inet = [a.address for each in psutil.net_if_addrs().values() for a in each if a.family == socket.AF_INET]
    found = [address for address in inet if not address.startswith("127.")]
    if not found:
        pytest.skip("this machine has no address but loopback")
    with GrpcServer(found[0], insecure_lan=True) as server:
        assert server.address.startswith("plain://")
        assert not uses_tls(parse_address(server.address))


def test_over_tls_a_node_gets_a_login_of_its_own(authority: Authority) -> None:
    for role in ("trainer", "scorer"):
        issue_locally(role, authority, "host")
    asked: list[tuple[str, str]] = []

    def login_for(node: str, role: str) -> NodeLogin:
        asked.append((node, role))
        return NodeLogin("tersely:r-1:" + node, "secret")

    server = GrpcServer("0.0.0.0")
    server.add(NodeServicer("r-1", "{}", "redis://127.0.0.1:1", 1, login_for=login_for).register)
    with server, join(server.address, "scorer", wait_seconds=10) as joined:
        assert joined.login == NodeLogin("tersely:r-1:" + asked[0][0], "secret")
        assert "secret" not in repr(joined)
        assert joined.node_id.startswith(asked[0][0] + "_")
        assert joined.renewal is not None
    assert [role for _, role in asked] == ["scorer"]


def test_in_plaintext_no_login_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(node: str, role: str) -> NodeLogin:
        raise AssertionError

    server = GrpcServer()
    server.add(NodeServicer("r-1", "{}", "redis://127.0.0.1:1", 1, login_for=refused).register)
    with server, join(server.address, "scorer", wait_seconds=10) as joined:
        assert (joined.login, joined.renewal) == (None, None)
