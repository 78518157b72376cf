"""What becomes of a node inside: renewed, expired, revoked, with its connections open."""

import collections
import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tersely.errors import AccessDenied, CertificateRefused, IdentityInvalid, IdentityMissing, TrainerUnreachable
from tersely.identity.authority import Authority
from tersely.identity.certificates import make_key
from tersely.identity.enroll import enroll
from tersely.identity.folder import FOLDER_ENV
from tersely.identity.node import NodeIdentity, issue_locally, load_identity, save_identity
from tersely.identity.renewal import Renewal
from tersely.identity.revocations import Revocations
from tersely.identity.tokens import JoinToken
from tersely.node.join import join
from tersely.node.roles import role_to_proto
from tersely.rpc.client import call, dial
from tersely.rpc.server import GrpcServer
from tersely.v1 import identity_pb2_grpc, node_pb2, node_pb2_grpc

from .conftest import Trainer

JoinStub = node_pb2_grpc.NodeServiceStub


@pytest.fixture
def worker(trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NodeIdentity:
    """A machine that has joined as rollout; this process is on it from here on."""
    own = enroll(trainer.join, JoinToken.parse(trainer.token()), folder=tmp_path / "worker-machine")
    monkeypatch.setenv(FOLDER_ENV, str(tmp_path / "worker-machine"))
    return own


def ask(channel: grpc.Channel, address: str, role: str = "rollout") -> node_pb2.JoinResponse:
    request = node_pb2.JoinRequest(role=role_to_proto(role), host="mini", pid=7)
    return call(JoinStub(channel).Join, request, address=address, deadline_seconds=10, wait_for_ready=False)


def renew(trainer: Trainer, worker: NodeIdentity) -> NodeIdentity:
    key = make_key()
    pem = trainer.authority.issue(key.public_key(), worker.name, worker.role)
    return save_identity(worker.role, key, pem, worker.authority_pem)


def test_a_node_is_known_by_its_certificate_and_gets_in_as_what_it_is(trainer: Trainer, worker: NodeIdentity) -> None:
    with dial(trainer.address, role="rollout") as channel:
        assert ask(channel, trainer.address).node_id.startswith(f"{worker.name}_7-")
        with pytest.raises(AccessDenied, match="rollout and asks to be a scorer"):
            ask(channel, trainer.address, "scorer")


def test_revocation_takes_effect_at_the_next_call_of_an_open_channel(trainer: Trainer, worker: NodeIdentity) -> None:
    with dial(trainer.address, role="rollout") as channel:
        ask(channel, trainer.address)
        trainer.authority.revoke(worker.name)
        with pytest.raises(CertificateRefused, match="revoked"):
            ask(channel, trainer.address)


def test_the_old_certificate_of_a_node_is_revoked_with_the_new(trainer: Trainer, worker: NodeIdentity) -> None:
    renewed = renew(trainer, worker)
    trainer.authority.revoke(worker.name)
    revoked = Revocations(trainer.authority.revocations_file, trainer.authority.pem)
    assert revoked.holds(worker.certificate.serial)
    assert revoked.holds(renewed.certificate.serial)
    with pytest.raises(CertificateRefused):
        renew(trainer, worker)


class Ticking(health_pb2_grpc.HealthServicer):
    """Has a stream that goes on for as long as it is read."""

    async def Watch(self, request: Any, context: Any) -> Any:  # noqa: N802
        while True:
            yield health_pb2.HealthCheckResponse()


@pytest.fixture
def ticking(authority: Authority) -> Iterator[GrpcServer]:
    server = GrpcServer("0.0.0.0", role="trainer")
    handler = grpc.unary_stream_rpc_method_handler(
        Ticking().Watch,
        request_deserializer=health_pb2.HealthCheckRequest.FromString,
        response_serializer=health_pb2.HealthCheckResponse.SerializeToString,
    )
    watch = grpc.method_handlers_generic_handler("tersely.v1.CheckpointService", {"WatchVersions": handler})
    server.add(lambda inner: inner.add_generic_rpc_handlers((watch,)))
    with server:
        yield server


def test_an_open_stream_to_a_revoked_node_ends(ticking: GrpcServer, authority: Authority) -> None:
    own = issue_locally("rollout", authority, "mini")
    with dial(ticking.address, role="rollout") as channel:
        stream = channel.unary_stream(
            "/tersely.v1.CheckpointService/WatchVersions",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )(health_pb2.HealthCheckRequest(), timeout=60)
        assert next(stream) is not None
        authority.revoke(own.name)
        with pytest.raises(grpc.RpcError) as caught:
            collections.deque(stream, maxlen=0)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_calls_go_on_with_the_renewed_certificate_though_the_old_one_has_expired(
    trainer: Trainer, worker: NodeIdentity
) -> None:
    with dial(trainer.address, role="rollout") as channel:
        ask(channel, trainer.address)
        later = worker.certificate.not_after
        trainer.guard._clock = lambda: later
        with pytest.raises(CertificateRefused, match="valid from"):
            ask(channel, trainer.address)  # on the connection that is open
        longer = Authority(trainer.authority.folder, datetime.timedelta(days=60))
        key = make_key()
        renewed = longer.issue(key.public_key(), worker.name, "rollout")
        save_identity("rollout", key, renewed, worker.authority_pem)
        assert ask(channel, trainer.address).node_id


def test_a_certificate_is_renewed_by_itself_when_a_third_of_its_time_is_left(
    trainer: Trainer, worker: NodeIdentity
) -> None:
    now = worker.certificate.not_before
    with dial(trainer.address, role="rollout") as channel:
        renewal = Renewal("rollout", channel, trainer.address, clock=lambda: now)
        now += datetime.timedelta(days=19)
        assert not renewal.look()
        now += datetime.timedelta(days=2)
        assert renewal.look()
        renewed = load_identity("rollout")
        assert renewed.name == worker.name
        assert renewed.certificate.serial != worker.certificate.serial
        assert renewed.key_pem != worker.key_pem
        assert ask(channel, trainer.address).node_id
    assert len(trainer.authority.nodes()[worker.name]["certificates"]) == 2


def test_the_machine_of_the_authority_may_be_off_for_a_month(authority: Authority) -> None:
    long_ago = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=40)
    old = issue_locally("scorer", Authority(authority.folder, clock=lambda: long_ago), "host")
    assert old.certificate.not_after < datetime.datetime.now(datetime.UTC)
    found = load_identity("scorer")
    assert (found.name, found.certificate.serial != old.certificate.serial) == (old.name, True)
    assert found.certificate.not_after > datetime.datetime.now(datetime.UTC)
    assert load_identity("scorer") == found


def test_whose_certificate_ran_out_is_told_before_it_dials(
    trainer: Trainer, worker: NodeIdentity, tmp_path: Path
) -> None:
    long_ago = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=31)
    key = make_key()
    old = Authority(trainer.authority.folder, clock=lambda: long_ago).issue(key.public_key(), worker.name, "rollout")
    save_identity("rollout", key, old, worker.authority_pem)
    with pytest.raises(CertificateRefused, match="has expired"):
        join(trainer.address, "rollout", wait_seconds=1)


def test_a_revoked_node_cannot_renew(trainer: Trainer, worker: NodeIdentity) -> None:
    trainer.authority.revoke(worker.name)
    with dial(trainer.address, role="rollout") as channel, pytest.raises(CertificateRefused, match="revoked"):
        Renewal("rollout", channel, trainer.address).look()
    assert load_identity("rollout") == worker


def test_a_server_shows_its_renewed_certificate_to_who_comes_next(trainer: Trainer, worker: NodeIdentity) -> None:
    import ssl

    from tersely.rpc.address import parse_address

    where = parse_address(trainer.address)
    before = ssl.get_server_certificate((where.host, where.port), timeout=10)
    issue_locally("trainer", trainer.authority, "host", trainer.authority.folder.parent)
    after = ssl.get_server_certificate((where.host, where.port), timeout=10)
    assert before != after
    with dial(trainer.address, role="rollout") as channel:
        assert ask(channel, trainer.address).node_id


def test_a_node_learns_who_was_put_out_and_takes_no_older_list(trainer: Trainer, worker: NodeIdentity) -> None:
    old = (worker.folder / "revoked.pem").read_bytes()
    other = issue_locally("scorer", trainer.authority, "host", trainer.authority.folder.parent)
    trainer.authority.revoke(other.name)
    own = Revocations.of(worker)
    assert not own.holds(other.certificate.serial)
    with dial(trainer.address, role="rollout") as channel:
        Renewal("rollout", channel, trainer.address).look()
    assert own.holds(other.certificate.serial)
    assert not own.take(old)
    (worker.folder / "revoked.pem").write_bytes(old)
    assert own.holds(other.certificate.serial)
    (worker.folder / "revoked.pem").write_bytes(b"nonsense")
    assert own.holds(other.certificate.serial)


def test_a_list_that_another_signed_is_not_taken(trainer: Trainer, worker: NodeIdentity, tmp_path: Path) -> None:
    foreign = Authority.create(tmp_path / "foreign" / "ca")
    with pytest.raises(IdentityInvalid, match="not the authority's"):
        Revocations.of(worker).take(foreign.revocations_file.read_bytes())


def test_a_node_with_a_good_certificate_cannot_stand_in_for_the_trainer(
    trainer: Trainer, worker: NodeIdentity, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A compromised scorer may serve, but not as a trainer."""
    monkeypatch.setenv(FOLDER_ENV, str(tmp_path / "trainer-machine"))
    issue_locally("scorer", authority, "host")
    impostor = GrpcServer("0.0.0.0", role="scorer")
    impostor.add(node_servicer().register)
    with impostor:
        monkeypatch.setenv(FOLDER_ENV, str(tmp_path / "worker-machine"))
        with dial(impostor.address, role="rollout") as channel, pytest.raises(TrainerUnreachable):
            ask(channel, impostor.address)


def node_servicer() -> Any:
    from tersely.node.servicer import NodeServicer

    return NodeServicer("r-2", "{}", "redis://127.0.0.1:1", 1)


def test_who_has_not_joined_is_told_so_and_never_falls_back_to_plaintext(
    trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLDER_ENV, str(tmp_path / "stranger"))
    with pytest.raises(IdentityMissing, match="token create --role rollout"):
        join(trainer.address, "rollout", wait_seconds=1)


def test_nothing_answers_renewal_without_a_certificate(trainer: Trainer) -> None:
    from tersely.rpc.address import parse_address
    from tersely.v1 import identity_pb2

    with grpc.insecure_channel(parse_address(trainer.address).target) as channel:
        stub = identity_pb2_grpc.CertificateServiceStub(channel)
        with pytest.raises(grpc.RpcError):
            stub.GetRevocations(identity_pb2.GetRevocationsRequest(), timeout=10)
