"""From a token to a certificate, on real sockets."""

import datetime
import logging
import socket
from pathlib import Path
from typing import Any

import pytest

from tersely.errors import AuthorityMismatch, IdentityInvalid, IdentityMissing, TokenRefused, TrainerUnreachable
from tersely.identity.authority import Authority
from tersely.identity.enroll import enroll
from tersely.identity.node import load_identity
from tersely.identity.servicers import WRONG_TOKENS_PER_MINUTE, Attempts, JoinServicer
from tersely.identity.tokens import JoinToken, TokenBook
from tersely.rpc.address import Address, parse_address
from tersely.rpc.credentials import joining_tls
from tersely.rpc.server import GrpcServer
from tersely.v1 import identity_pb2

from .conftest import Trainer


def test_a_token_gets_a_certificate_of_its_role_for_thirty_days(trainer: Trainer, tmp_path: Path) -> None:
    token = JoinToken.parse(trainer.token("scorer"))
    own = enroll(trainer.join, token, folder=tmp_path / "mini")
    assert own.role == "scorer"
    left = own.certificate.not_after - datetime.datetime.now(datetime.UTC)
    assert datetime.timedelta(days=29, hours=23) < left <= datetime.timedelta(days=30)
    assert own == load_identity("scorer", tmp_path / "mini")
    assert parse_address(own.address).port == parse_address(trainer.address).port
    assert trainer.authority.nodes()[own.name]["token"] == token.token_id


def test_keys_are_for_their_owner_alone(trainer: Trainer, tmp_path: Path) -> None:
    enroll(trainer.join, JoinToken.parse(trainer.token()), folder=tmp_path / "mini")
    for folder in (tmp_path / "mini", tmp_path / "mini" / "rollout", trainer.authority.folder):
        assert folder.stat().st_mode & 0o777 == 0o700
        assert {path.stat().st_mode & 0o777 for path in folder.iterdir() if path.is_file()} <= {0o600}
    (tmp_path / "mini" / "rollout" / "node.pem").chmod(0o644)
    with pytest.raises(IdentityInvalid, match="read by others"):
        load_identity("rollout", tmp_path / "mini")


def test_a_token_cannot_be_used_again_and_not_after_its_time(trainer: Trainer, tmp_path: Path) -> None:
    token = JoinToken.parse(trainer.token())
    enroll(trainer.join, token, folder=tmp_path / "a")
    with pytest.raises(TokenRefused, match="is used"):
        enroll(trainer.join, token, folder=tmp_path / "b")
    long_ago = datetime.datetime.now(datetime.UTC) - datetime.timedelta(minutes=16)
    late = TokenBook(trainer.authority.folder, lambda: long_ago).create(trainer.authority.fingerprint, "rollout")
    with pytest.raises(TokenRefused, match="is expired"):
        enroll(trainer.join, late, folder=tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_guessing_is_refused_and_soon_not_even_looked_at(trainer: Trainer, tmp_path: Path) -> None:
    for number in range(WRONG_TOKENS_PER_MINUTE):
        guess = JoinToken("rollout", trainer.authority.fingerprint, bytes([number]) * 32)
        with pytest.raises(TokenRefused, match="not known"):
            enroll(trainer.join, guess, folder=tmp_path / "a")
    good = JoinToken.parse(trainer.token())
    with pytest.raises(TokenRefused, match="Too many"):
        enroll(trainer.join, good, folder=tmp_path / "a")
    assert trainer.tokens.entries()[good.token_id]["state"] == "open"


def test_another_address_is_not_held_up_by_the_guesses_of_one_and_a_minute_is_enough() -> None:
    now = 100.0
    attempts = Attempts(lambda: now)
    for _ in range(WRONG_TOKENS_PER_MINUTE):
        attempts.check("ipv4:192.0.2.7")
        attempts.wrong("ipv4:192.0.2.7")
    with pytest.raises(TokenRefused):
        attempts.check("ipv4:192.0.2.7")
    attempts.check("ipv4:192.0.2.8")
    now = 160.0
    attempts.check("ipv4:192.0.2.7")


class Rogue(JoinServicer):
    """Shows the true authority's certificate, and would take what it is sent."""

    def __init__(self, own: Authority, shown: bytes) -> None:
        super().__init__(own)
        self.shown = shown
        self.took: list[bytes] = []

    async def GetAuthority(self, request: Any, context: Any) -> identity_pb2.GetAuthorityResponse:  # noqa: N802
        return identity_pb2.GetAuthorityResponse(authority_pem=self.shown)

    async def Enroll(self, request: Any, context: Any) -> identity_pb2.EnrollResponse:  # noqa: N802
        self.took.append(request.token_secret)
        return identity_pb2.EnrollResponse()


@pytest.mark.parametrize("copies", [True, False])
def test_nobody_else_gets_to_see_the_token(trainer: Trainer, tmp_path: Path, copies: bool) -> None:
    other = Authority.create(tmp_path / "rogue" / "ca")
    rogue = Rogue(other, trainer.authority.pem if copies else other.pem)
    server = GrpcServer("0.0.0.0", security=joining_tls(other))
    server.add(rogue.register)
    with server, pytest.raises(AuthorityMismatch):
        enroll(parse_address(server.address), JoinToken.parse(trainer.token()), folder=tmp_path / "a")
    assert rogue.took == []


def test_a_node_cannot_stand_in_for_the_port_at_which_others_join(trainer: Trainer, tmp_path: Path) -> None:
    """A compromised scorer has a certificate of the true authority, for serving even."""
    import grpc

    from tersely.rpc.credentials import ServerSecurity

    own = enroll(trainer.join, JoinToken.parse(trainer.token("scorer")), folder=tmp_path / "scorer-machine")
    rogue = Rogue(trainer.authority, trainer.authority.pem)
    credentials = grpc.ssl_server_credentials([(own.key_pem, own.certificate_pem)])
    server = GrpcServer("0.0.0.0", security=ServerSecurity(credentials, (), (), health=False))
    server.add(rogue.register)
    with server, pytest.raises((AuthorityMismatch, TrainerUnreachable)):
        enroll(parse_address(server.address), JoinToken.parse(trainer.token()), folder=tmp_path / "a")
    assert rogue.took == []


def test_where_nobody_listens_and_where_nobody_speaks_tls_it_says_so(tmp_path: Path) -> None:
    token = JoinToken("rollout", bytes(32), bytes(32))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(TrainerUnreachable, match="with TLS"):
        enroll(Address("127.0.0.1", port), token, folder=tmp_path)
    with GrpcServer() as plain, pytest.raises(TrainerUnreachable, match="with TLS"):
        enroll(parse_address(plain.address), token, folder=tmp_path)


def test_an_identity_is_not_lost_to_a_second_join_unless_that_is_said(trainer: Trainer, tmp_path: Path) -> None:
    first = enroll(trainer.join, JoinToken.parse(trainer.token()), folder=tmp_path / "mini")
    second = JoinToken.parse(trainer.token())
    with pytest.raises(IdentityInvalid, match="already"):
        enroll(trainer.join, second, folder=tmp_path / "mini")
    assert trainer.tokens.entries()[second.token_id]["state"] == "open"
    assert enroll(trainer.join, second, folder=tmp_path / "mini", replace=True).name != first.name


def test_secrets_are_not_logged(
    trainer: Trainer, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    text = trainer.token()
    own = enroll(trainer.join, JoinToken.parse(text), folder=tmp_path / "mini")
    with pytest.raises(TokenRefused):
        enroll(trainer.join, JoinToken.parse(text), folder=tmp_path / "other")
    out, err = capfd.readouterr()
    said = out + err + caplog.text
    assert "node_enrolled" in said
    assert text[-43:] not in said
    assert own.key_pem.decode().splitlines()[1] not in said
    assert own.key_pem.decode().splitlines()[1] not in repr(own)


def test_without_an_authority_or_an_identity_it_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(IdentityMissing, match="tersely ca init"):
        Authority.open(tmp_path / "ca")
    with pytest.raises(IdentityMissing, match="tersely token create --role rollout"):
        load_identity("rollout", tmp_path)


def test_an_authority_is_not_made_twice(authority: Authority) -> None:
    with pytest.raises(IdentityInvalid, match="already"):
        Authority.create(authority.folder)
