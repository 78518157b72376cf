"""Channels and calls to other services."""

from __future__ import annotations

from typing import TypeVar

import grpc

from tersely.rpc.address import parse_address
from tersely.rpc.errors import from_rpc_error

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")

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


def dial(address: str) -> grpc.Channel:
    """Opens a channel with keepalive; connects on first use and again whenever the connection breaks.

    Args:
        address: host:port.

    Returns:
        A channel to be closed by the caller. The receive limit stays gRPC's 4 MiB.

    Raises:
        ConfigValue: The address is not of the form host:port.
    """
    return grpc.insecure_channel(str(parse_address(address)), options=_OPTIONS)


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
