"""`tersely ca`, `tersely token` and `tersely join` as they are typed; and `--insecure-lan`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tersely.cli import services
from tersely.cli.config import check_addresses
from tersely.cli.main import app
from tersely.config import load_recipe
from tersely.errors import IdentityInvalid, IdentityMissing, PlaintextRefused, TokenRefused
from tersely.identity.authority import Authority
from tersely.identity.folder import FOLDER_ENV
from tersely.identity.gate import Gate
from tersely.identity.node import authority_folder, load_identity
from tersely.node.options import ServiceOptions
from tersely.rpc.address import PLAIN, parse_address
from tersely.rpc.server import GrpcServer


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(FOLDER_ENV, str(tmp_path / "home"))
    return tmp_path / "home"


def tersely(*words: str, told: str = "") -> str:
    """Standard output; an error comes as it was raised."""
    return CliRunner().invoke(app, words, input=told, catch_exceptions=False, standalone_mode=False).stdout


@pytest.fixture
def join_at(home: Path) -> Iterator[str]:
    """Where nodes join, with an authority made by `tersely ca init`."""
    tersely("ca", "init")
    server = GrpcServer("0.0.0.0", role="trainer")
    gate = Gate.beside(server, "0.0.0.0", 0)
    assert gate is not None
    with server:
        yield gate.open(server.port).removeprefix("tls://")
        gate.close()


def test_from_init_to_a_node_that_is_put_out_again(join_at: str, home: Path, tmp_path: Path) -> None:
    mini = tmp_path / "mini"
    token = tersely("token", "create", "--role", "scorer").splitlines()[0]
    assert "joined as scorer-" in tersely("join", join_at, "--token", "-", "--dir", str(mini), told=token + "\n")
    name = load_identity("scorer", mini).name
    (row,) = json.loads(tersely("token", "list", "--json"))
    assert (row["state"], row["node"], row["role"]) == ("used", name, "scorer")
    assert "is put out" in tersely("token", "revoke", row["token"])
    shown = json.loads(tersely("ca", "show", "--json"))
    assert {node["name"] for node in shown["nodes"] if node["revoked"]} == {name}
    assert shown["authority"]["sha256"] == Authority.open(authority_folder()).fingerprint.hex()
    assert "was put out before" in tersely("token", "revoke", name)


def test_a_token_comes_from_a_file_too_and_an_unused_one_can_be_taken_back(join_at: str, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(tersely("token", "create").splitlines()[0])
    assert "joined as rollout-" in tersely("join", join_at, "--token", f"@{file}", "--dir", str(tmp_path / "mini"))
    other = tersely("token", "create").splitlines()[0]
    number = next(row["token"] for row in json.loads(tersely("token", "list", "--json")) if row["state"] == "open")
    assert "nobody had joined" in tersely("token", "revoke", number)
    with pytest.raises(TokenRefused, match="is revoked"):
        tersely("join", join_at, "--token", "-", "--dir", str(tmp_path / "other"), told=other)
    with pytest.raises(TokenRefused, match="can't be read"):
        tersely("join", join_at, "--token", f"@{tmp_path / 'none'}", "--dir", str(tmp_path / "other"))


def test_lists_for_people_have_no_secret(join_at: str, home: Path) -> None:
    token = tersely("token", "create").splitlines()[0]
    said = tersely("token", "list") + tersely("token", "list", "--json") + tersely("ca", "show")
    assert "open" in said
    assert token[-43:] not in said


def test_what_cannot_be_says_so(home: Path) -> None:
    with pytest.raises(IdentityMissing, match="tersely ca init"):
        tersely("token", "create")
    tersely("ca", "init")
    with pytest.raises(IdentityInvalid, match="already"):
        tersely("ca", "init")
    with pytest.raises(IdentityInvalid, match="trainer"):
        tersely("token", "create", "--role", "trainer")
    with pytest.raises(IdentityMissing, match="No node"):
        tersely("token", "revoke", "nobody")


@pytest.mark.parametrize(
    ("typed", "port"),
    [
        ("mini.local", 7071),
        ("mini.local:9000", 9000),
        ("192.168.1.4", 7071),
        ("[fd00::2]:9000", 9000),
        ("fd00::2", 7071),
        ("[fd00::2]", 7071),
        ("tls://mini.local:9000", 9000),
    ],
)
def test_where_to_join_is_a_host_with_a_port_or_without(typed: str, port: int) -> None:
    from tersely.cli.join import _address

    found = _address(typed)
    assert found.port == port
    assert found.host in typed


def test_beyond_loopback_a_recipe_needs_certificates_or_the_word(home: Path) -> None:
    lan = load_recipe(None, ["rpc.host=0.0.0.0"], {}).recipe
    with pytest.raises(PlaintextRefused, match=r"rpc\.host"):
        check_addresses(lan)
    check_addresses(load_recipe(None, services.with_insecure_lan(["rpc.host=0.0.0.0"], True), {}).recipe)
    tersely("ca", "init")
    check_addresses(lan)


def test_insecure_lan_reaches_the_services(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    seen: list[ServiceOptions] = []

    def note(role: str, options: ServiceOptions) -> int:
        seen.append(options)
        return 0

    monkeypatch.setattr(services, "run_service", note)
    tersely("rollout", "--trainer", "mini.local:7070", "--insecure-lan")
    tersely("rollout", "--trainer", "mini.local:7070")
    tersely("scorer", "--insecure-lan", "--set", "scorer.host=0.0.0.0")
    tersely("judge", "--insecure-lan", "--trainer", "mini.local:7070")
    assert parse_address(str(seen[0].trainer)).scheme == PLAIN
    assert seen[1].trainer == "mini.local:7070"
    assert seen[2].overrides == ("scorer.host=0.0.0.0", "rpc.insecure_lan=true")
    assert (seen[3].overrides, seen[3].trainer) == ((), "plain://mini.local:7070")
