"""TLS for servers and channels. Imported only where TLS is used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import grpc
import structlog
from cryptography.hazmat.primitives.asymmetric import ec

from tersely.errors import CertificateRefused, TerselyError
from tersely.identity.authority import Authority
from tersely.identity.certificates import ANY_ROLE, JOIN, key_pem, make_key, server_name, utc_now
from tersely.identity.node import NodeIdentity, load_identity
from tersely.identity.renewal import Renewal
from tersely.identity.revocations import Revocations
from tersely.rpc.address import Address, parse_address
from tersely.rpc.guard import Guard
from tersely.rpc.renewing import RenewingChannel

Mark = tuple[int, int]
_log = structlog.get_logger(__name__)

# A stranger who connects and says nothing is let go soon.
_SERVER_OPTIONS: tuple[tuple[str, int], ...] = (("grpc.server_handshake_timeout_ms", 10_000),)
_JOIN_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", 64 * 1024),
    ("grpc.max_concurrent_streams", 4),
    ("grpc.max_connection_age_ms", 30_000),
    ("grpc.max_connection_age_grace_ms", 5_000),
)


@dataclass(frozen=True, slots=True)
class ServerSecurity:
    """What makes a server take TLS.

    Attributes:
        credentials: Its key and certificate, and whom it trusts.
        interceptors: Stand before every call.
        options: Of the server.
        health: Whether health checks are served, too.
        renewal: Runs as long as the server, and keeps its certificate valid.
    """

    credentials: grpc.ServerCredentials
    interceptors: tuple[grpc.aio.ServerInterceptor, ...]
    options: tuple[tuple[str, int], ...]
    health: bool = True
    renewal: Renewal | None = None


def mutual_tls(role: str) -> ServerSecurity:
    """For a server that takes only callers with a certificate of the same authority, each for what its role may.

    A renewed certificate is shown from the next connection on.

    Raises:
        IdentityMissing, IdentityInvalid: This machine has no usable identity for the role.
    """
    identity = load_identity(role)
    revocations = Revocations.of(identity)
    file = identity.folder / "node.pem"
    shown = _mark(file)

    def renewed() -> grpc.ServerCertificateConfiguration | None:
        nonlocal shown
        mark = _mark(file)
        if mark == shown:
            return None
        try:
            found = _configuration(load_identity(role, identity.folder.parent))
        except TerselyError as error:
            _log.error("renewed_certificate_unusable", role=role, message=error.message)
            return None
        shown = mark
        return found

    # None means "as before", which the type stubs don't know.
    fetch = cast(Callable[[], grpc.ServerCertificateConfiguration], renewed)
    credentials = grpc.dynamic_ssl_server_credentials(_configuration(identity), fetch, True)
    return ServerSecurity(credentials, (Guard(revocations),), _SERVER_OPTIONS, renewal=_renewal(identity))


def _renewal(identity: NodeIdentity) -> Renewal:
    """Signs on the machine of the authority; elsewhere asks where the node has joined."""
    if not identity.address:
        return Renewal(identity.role, folder=identity.folder.parent)
    options = (("grpc.max_reconnect_backoff_ms", 5_000), ("grpc.use_local_subchannel_pool", 1))
    channel = secure_channel(parse_address(identity.address), identity.role, ANY_ROLE, options)
    return Renewal(identity.role, channel, identity.address, folder=identity.folder.parent)


def joining_tls(authority: Authority) -> ServerSecurity:
    """For the port at which nodes join: TLS with a certificate of the authority, from callers none."""
    key: ec.EllipticCurvePrivateKey = make_key()
    pair = (key_pem(key), authority.issue_for_joining(key.public_key()))
    return ServerSecurity(grpc.ssl_server_credentials([pair]), (), _SERVER_OPTIONS + _JOIN_OPTIONS, health=False)


def secure_channel(address: Address, role: str | None, server: str, options: Sequence[tuple[str, int]]) -> grpc.Channel:
    """A channel with mTLS that goes on with a renewed certificate.

    Args:
        address: Whom to dial.
        role: Whose identity to show; None: any that this machine has.
        server: Role that the server's certificate must be for; `tersely.identity.certificates.ANY_ROLE`: any.
        options: Of the channel.

    Raises:
        IdentityMissing, IdentityInvalid: This machine has no usable identity.
        CertificateRefused: Its certificate has expired.
    """
    identity = load_identity(role)
    if utc_now() >= identity.certificate.not_after:  # TLS would only show a closed connection
        raise CertificateRefused(
            f"The certificate of {identity.name} has expired ({identity.certificate.not_after:%F %T} UTC).",
            "Check this machine's clock; else join again with a new token: tersely join HOST --token - --replace",
        )
    file = identity.folder / "node.pem"
    named = (*options, ("grpc.ssl_target_name_override", server_name(server)))

    def make() -> grpc.Channel:
        own = load_identity(identity.role, identity.folder.parent)
        credentials = grpc.ssl_channel_credentials(own.authority_pem, own.key_pem, own.certificate_pem)
        return grpc.secure_channel(address.target, credentials, named)

    return RenewingChannel(make, lambda: _mark(file))


def joining_channel(address: Address, authority_pem: bytes, options: Sequence[tuple[str, int]]) -> grpc.Channel:
    """A channel to a port for joining, whose certificate must be of this authority, or be this certificate itself."""
    named = (*options, ("grpc.ssl_target_name_override", server_name(JOIN)))
    return grpc.secure_channel(address.target, grpc.ssl_channel_credentials(authority_pem), named)


def _configuration(identity: NodeIdentity) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(identity.key_pem, identity.certificate_pem)], identity.authority_pem
    )


def _mark(file: Path) -> Mark:
    """Changes when the file is replaced; the last one while it can't be looked at."""
    try:
        state = file.stat()
    except OSError:
        return (0, 0)
    return (state.st_mtime_ns, state.st_ino)
