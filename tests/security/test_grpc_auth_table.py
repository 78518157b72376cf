"""Every gRPC method x who calls it: with the right role it goes through, everybody else is refused.

The table is written to build/auth.md, and to build/auth.json with how many calls had to be refused, and were.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from grpc_health.v1 import health_pb2

from tersely.errors import AccessDenied, CertificateRefused, TerselyError
from tersely.identity.authority import Authority
from tersely.identity.certificates import make_key, server_name
from tersely.identity.folder import FOLDER_ENV, ROLES
from tersely.identity.node import NodeIdentity, authority_folder, issue_locally, load_identity, save_identity
from tersely.rpc.address import parse_address
from tersely.rpc.credentials import joining_tls
from tersely.rpc.errors import sent_error
from tersely.rpc.roles import MAY_CALL, OPEN_METHODS
from tersely.rpc.server import GrpcServer
from tersely.v1 import (
    checkpoint_pb2,
    common_pb2,
    group_pb2,
    identity_pb2,
    judge_pb2,
    log_pb2,
    node_pb2,
    run_pb2,
    scoring_pb2,
)

BUILD = Path(__file__).resolve().parents[2] / "build"
PROTOS = Path(__file__).resolve().parents[2] / "proto" / "tersely" / "v1"
FILES = (
    checkpoint_pb2,
    common_pb2,
    group_pb2,
    identity_pb2,
    judge_pb2,
    log_pb2,
    node_pb2,
    run_pb2,
    scoring_pb2,
    health_pb2,
)


def methods() -> dict[str, MethodDescriptor]:
    """Every method of every service that we have, health checks among them."""
    return {
        f"/{service.full_name}/{method.name}": method
        for file in FILES
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }


METHODS = methods()


def test_the_test_knows_every_proto_file() -> None:
    assert {path.stem for path in PROTOS.glob("*.proto")} == {
        Path(file.DESCRIPTOR.name).stem for file in FILES if file is not health_pb2
    }


def test_every_method_of_every_service_is_in_the_role_table_and_nothing_else() -> None:
    assert set(METHODS) <= set(MAY_CALL)
    # Of newer versions of the package with the health checks.
    assert set(MAY_CALL) - set(METHODS) <= {"/grpc.health.v1.Health/List"}
    assert all(roles <= set(ROLES) for roles in MAY_CALL.values())
    assert set(METHODS) >= OPEN_METHODS


def handlers() -> list[grpc.GenericRpcHandler]:
    """A handler of the right arity for every method but health checks, which each server has; it answers nothing."""
    by_service: dict[str, dict[str, Any]] = {}
    for name, method in METHODS.items():
        service = name.split("/")[1]
        if service == "grpc.health.v1.Health":
            continue

        async def unary(request: Any, context: Any) -> bytes:
            return b""

        async def stream(request: Any, context: Any) -> Any:
            yield b""

        make: Any = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }[method.client_streaming, method.server_streaming]
        handler = make(stream if method.server_streaming else unary)
        by_service.setdefault(service, {})[method.name] = handler
    return [grpc.method_handlers_generic_handler(service, found) for service, found in by_service.items()]


def outcome(channel: grpc.Channel, name: str) -> str:
    """`reached`, or how the call was refused."""
    method = METHODS[name]
    kind = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
    call = getattr(channel, kind)(name)
    request: Any = iter([b""]) if method.client_streaming else b""
    try:
        answer = call(request, timeout=10)
        if method.server_streaming:
            next(iter(answer))
            answer.cancel()
    except grpc.RpcError as error:
        sent: TerselyError | None = sent_error(error)
        return sent.kind if sent is not None else error.code().name.lower()
    return "reached"


@dataclass
class Table:
    """What came of each call."""

    rows: dict[str, dict[str, str]] = field(default_factory=dict)

    def note(self, caller: str, name: str, found: str) -> None:
        self.rows.setdefault(name, {})[caller] = found

    def write(self, callers: list[str]) -> None:
        BUILD.mkdir(exist_ok=True)
        wrong = [found for name, row in self.rows.items() for who, found in row.items() if who not in MAY_CALL[name]]
        figures = {"calls": len(wrong), "refused": sum(found != "reached" for found in wrong)}
        lines = [[name, *(row.get(each, "") for each in callers)] for name, row in self.rows.items()]
        rows = [f"| {' | '.join(line)} |" for line in lines]
        head = "| method | " + " | ".join(callers) + " |\n|" + "---|" * (len(callers) + 1)
        (BUILD / "auth.md").write_text("\n".join([head, *rows]) + "\n")
        (BUILD / "auth.json").write_text(json.dumps({**figures, "table": self.rows}))


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Authority:
    monkeypatch.setenv(FOLDER_ENV, str(tmp_path / "identity"))
    made = Authority.create(authority_folder())
    issue_locally("trainer", made, "host")
    return made


def identity(authority: Authority, role: str, folder: Path, **changes: Any) -> NodeIdentity:
    issuer = Authority(authority.folder, **changes) if changes else authority
    return issue_locally(role, issuer, "host", folder)


@pytest.fixture
def server(authority: Authority) -> Iterator[GrpcServer]:
    made = GrpcServer("0.0.0.0", role="trainer")
    made.add(lambda inner: inner.add_generic_rpc_handlers(tuple(handlers())))
    with made:
        yield made


def dial_as(server: GrpcServer, authority: Authority, own: NodeIdentity | None) -> grpc.Channel:
    pair = (None, None) if own is None else (own.key_pem, own.certificate_pem)
    credentials = grpc.ssl_channel_credentials(authority.pem, *pair)
    options = (
        ("grpc.ssl_target_name_override", server_name("trainer")),
        ("grpc.use_local_subchannel_pool", 1),
        # A refused handshake is tried again at once, so that each call has one of its own.
        ("grpc.initial_reconnect_backoff_ms", 1),
        ("grpc.max_reconnect_backoff_ms", 1),
    )
    return grpc.secure_channel(parse_address(server.address).target, credentials, options)


def test_every_method_is_refused_to_all_but_those_it_is_for(
    server: GrpcServer, authority: Authority, tmp_path: Path
) -> None:
    foreign = Authority.create(tmp_path / "foreign" / "ca")
    now = datetime.datetime.now(datetime.UTC)
    callers: dict[str, NodeIdentity | None] = {"no certificate": None}
    for role in ROLES:
        callers[role] = identity(authority, role, tmp_path / "good")
        callers[f"foreign {role}"] = identity(foreign, role, tmp_path / "foreign-nodes")
        callers[f"revoked {role}"] = gone = identity(authority, role, tmp_path / "revoked")
        authority.revoke(gone.name)
        callers[f"expired {role}"] = identity(
            authority, role, tmp_path / "old", clock=lambda: now - datetime.timedelta(days=31)
        )
    # Its own authority says "trainer" of it, but under the name of ours.
    callers["self-made"] = save_identity(
        "trainer",
        (key := make_key()),
        foreign.issue(key.public_key(), "trainer-copy", "trainer"),
        foreign.pem,
        folder=tmp_path / "self-made",
    )
    table, wrong = Table(), []
    with ExitStack() as stack:
        channels = {caller: stack.enter_context(dial_as(server, authority, own)) for caller, own in callers.items()}
        for name, roles in ((name, MAY_CALL[name]) for name in METHODS):
            for caller, channel in channels.items():
                found = outcome(channel, name)
                table.note(caller, name, found)
                if caller in roles:
                    expected = {"reached"}
                elif caller in ROLES:
                    expected = {AccessDenied.kind}
                elif caller.startswith("revoked"):
                    expected = {CertificateRefused.kind}
                else:  # TLS itself refuses: no words pass
                    expected = {"unavailable"}
                if found not in expected:
                    wrong.append((name, caller, found))
    table.write(list(callers))
    assert not wrong
    assert len(table.rows) == len(METHODS)


def test_without_a_certificate_only_joining_is_possible_and_only_at_its_own_port(authority: Authority) -> None:
    made = GrpcServer("0.0.0.0", security=joining_tls(authority))
    made.add(
        lambda inner: inner.add_generic_rpc_handlers(
            tuple(each for each in handlers() if each.service_name() == "tersely.v1.JoinService")  # type: ignore[attr-defined]
        )
    )
    credentials = grpc.ssl_channel_credentials(authority.pem)
    named = (("grpc.ssl_target_name_override", server_name("join")),)
    with made, grpc.secure_channel(parse_address(made.address).target, credentials, named) as channel:
        found = {name: outcome(channel, name) for name in METHODS}
    assert {name for name, result in found.items() if result == "reached"} == set(OPEN_METHODS)
    assert {result for name, result in found.items() if name not in OPEN_METHODS} == {"unimplemented"}


def test_a_method_that_is_not_in_the_table_is_refused_even_to_the_trainer(authority: Authority, tmp_path: Path) -> None:
    async def answer(request: bytes, context: Any) -> bytes:
        return b""

    handler = grpc.method_handlers_generic_handler("new.Service", {"Do": grpc.unary_unary_rpc_method_handler(answer)})
    made = GrpcServer("0.0.0.0", role="trainer")
    made.add(lambda inner: inner.add_generic_rpc_handlers((handler,)))
    own = load_identity("trainer")
    with made, dial_as(made, authority, own) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/new.Service/Do")(b"", timeout=10)
    assert isinstance(sent_error(caught.value), AccessDenied)


def test_plaintext_gets_nothing_from_a_port_with_tls(server: GrpcServer) -> None:
    with grpc.insecure_channel(parse_address(server.address).target) as channel:
        found = {outcome(channel, name) for name in METHODS}
    assert found == {"unavailable"}
