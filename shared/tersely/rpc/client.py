"""Channels and calls to other services."""

from __future__ import annotations

from typing import TypeVar

import grpc
import structlog

from tersely.identity.folder import has_any_identity
from tersely.rpc.address import PLAIN, TLS, Address, parse_address
from tersely.rpc.errors import from_rpc_error

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")

_log = structlog.get_logger(__name__)

_OPTIONS: tuple[tuple[str, int], ...] = (
    # The server allows a ping every 20 s.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    # Nodes are on the same machine or LAN: a proxy from the environment is never meant for them.
    ("grpc.enable_http_proxy", 0),
    # Two channels in one process must not share a broken connection.
    ("grpc.use_local_subchannel_pool", 1),
)


def dial(address: str, *, role: str | None = None, server: str = "trainer") -> grpc.Channel:
    """Opens a channel with keepalive; connects on first use and again whenever the connection breaks.

    Args:
        address: host:port. ``tls://`` before it asks for TLS, ``plain://`` for plaintext; without, it is TLS beyond
            loopback where this machine has joined, and never falls back.
        role: Whose identity is shown over TLS; None: any that this machine has.
        server: Role that the other side's certificate must be for; "node": any.

    Returns:
        A channel to be closed by the caller. The receive limit stays gRPC's 4 MiB.

    Raises:
        ConfigValue: The address is not of the form host:port.
        IdentityMissing, IdentityInvalid: TLS was asked for, and this machine has no usable identity.
    """
    parsed = parse_address(address)
    if uses_tls(parsed):
        from tersely.rpc.credentials import secure_channel

        return secure_channel(parsed, role, server, _OPTIONS)
    if not parsed.loopback:
        _log.warning("plaintext_beyond_loopback", address=parsed.target)
    return grpc.insecure_channel(parsed.target, options=_OPTIONS)


def uses_tls(address: Address) -> bool:
    """Whether a channel to this address is encrypted."""
    if address.scheme:
        return address.scheme == TLS
    return not address.loopback and has_any_identity()


def in_plaintext(address: str) -> str:
    """The address for a channel that is not encrypted, whatever identity this machine has: for `--insecure-lan`."""
    return str(parse_address(address)._replace(scheme=PLAIN))


def call(
    method: grpc.UnaryUnaryMultiCallable[_Request, _Response],
    request: _Request,
    *,
    address: str,
    deadline_seconds: float = 10.0,
    wait_for_ready: bool = True,
) -> _Response:
    """Makes one unary call with a deadline.

    Args:
        method: Method of a stub.
        request: Its request.
        address: Server called, for messages.
        deadline_seconds: Most seconds for the whole call, connecting included.
        wait_for_ready: Wait for a server that is not up yet, instead of failing at once.

    Raises:
        TrainerUnreachable: Nothing answered within the deadline.
        TerselyError: The server refused, in the class it raised.
    """
    try:
        return method(request, timeout=deadline_seconds, wait_for_ready=wait_for_ready)
    except grpc.RpcError as error:
        raise from_rpc_error(error, address) from None
