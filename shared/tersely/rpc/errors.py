"""TerselyError across gRPC: the class, the message and the way out arrive as they left.

An error travels as a status with an ErrorInfo detail: `reason` is the kind, `domain` is "tersely", and the way out
is in the metadata. A status without such a detail comes from gRPC itself or from another program.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import structlog
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status

from tersely.errors import (
    AccessDenied,
    CertificateRefused,
    ConfigError,
    LeaseLost,
    RedisUnreachable,
    RewardUnknown,
    RpcError,
    TerselyError,
    TokenRefused,
    TrainerUnreachable,
    WeightsUnavailable,
    concrete_errors,
)

DOMAIN = "tersely"
# A status travels in HTTP/2 metadata, which is limited to 8 KiB in all, and its message is there twice.
_MOST_MESSAGE_CHARACTERS = 1000
_MOST_WAY_OUT_CHARACTERS = 400

_CODES: tuple[tuple[type[TerselyError], grpc.StatusCode], ...] = (
    (ConfigError, grpc.StatusCode.INVALID_ARGUMENT),
    (RewardUnknown, grpc.StatusCode.INVALID_ARGUMENT),
    (WeightsUnavailable, grpc.StatusCode.NOT_FOUND),
    (AccessDenied, grpc.StatusCode.PERMISSION_DENIED),
    (CertificateRefused, grpc.StatusCode.UNAUTHENTICATED),
    (TokenRefused, grpc.StatusCode.UNAUTHENTICATED),
    (LeaseLost, grpc.StatusCode.ABORTED),
    (RedisUnreachable, grpc.StatusCode.UNAVAILABLE),
    (TrainerUnreachable, grpc.StatusCode.UNAVAILABLE),
)
BROKEN = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED})
"""Codes of a call that may succeed when it is made again."""

_log = structlog.get_logger(__name__)


def code_of(error: TerselyError) -> grpc.StatusCode:
    """Status code for an error; FAILED_PRECONDITION where none fits better."""
    return next((code for cls, code in _CODES if isinstance(error, cls)), grpc.StatusCode.FAILED_PRECONDITION)


def to_status(error: TerselyError) -> grpc.Status:
    """Status for `context.abort_with_status`."""
    info = error_details_pb2.ErrorInfo(reason=error.kind, domain=DOMAIN)
    info.metadata["way_out"] = error.way_out[:_MOST_WAY_OUT_CHARACTERS]
    detail = any_pb2.Any()
    detail.Pack(info)
    number: int = code_of(error).value[0]
    message = error.message[:_MOST_MESSAGE_CHARACTERS]
    status: grpc.Status = rpc_status.to_status(status_pb2.Status(code=number, message=message, details=[detail]))
    return status


@asynccontextmanager
async def errors_as_status(context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[None]:
    """Wraps the body of an aio handler: a TerselyError ends the call with its status.

    Any other exception is logged with its traceback and reaches the caller as INTERNAL without details.
    """
    try:
        yield
    except TerselyError as error:
        await context.abort_with_status(to_status(error))
    except grpc.aio.AbortError:
        raise
    except Exception:  # noqa: BLE001 - logged, and the caller gets INTERNAL
        _log.exception("rpc_failed")
        await context.abort(grpc.StatusCode.INTERNAL, "Internal error; the server's log has the details.")


def sent_error(error: grpc.RpcError) -> TerselyError | None:
    """The TerselyError that the server raised, in its own class; None if the status carries none."""
    if not isinstance(error, grpc.Call):
        return None
    try:
        status = rpc_status.from_call(error)
    except ValueError:
        return None
    for detail in status.details if status is not None else ():
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info) and info.domain == DOMAIN:
            cls = next((c for c in concrete_errors() if c.kind == info.reason), RpcError)
            return cls(status.message, info.metadata.get("way_out", ""))
    return None


def from_rpc_error(error: grpc.RpcError, address: str) -> TerselyError:
    """What a failed call means: the error that the server raised, or TrainerUnreachable, or a plain RpcError.

    Args:
        error: As raised by a synchronous gRPC call.
        address: Server that was called, for the message.
    """
    sent = sent_error(error)
    if sent is not None:
        return sent
    code, details = code_and_details(error)
    if code in BROKEN:
        way_out = "Check that it runs, that the address is right, and that no firewall is between."
        if _broken_by_tls(details):
            # All that is told of a certificate that the other side does not take is a closed connection.
            way_out += (
                " If it listens with TLS: join it first (tersely join), and on its own machine write tls://HOST:PORT."
                " If it does not: --insecure-lan here, too."
            )
        return TrainerUnreachable(f"No answer from {address} ({code.name}: {details}).", way_out)
    return RpcError(f"{address} answered {code.name}: {details}", "See the log of the process that listens there.")


def _broken_by_tls(details: str) -> bool:
    return any(sign in details.lower() for sign in ("socket closed", "handshake", "ssl", "tls", "reset by peer", "eof"))


def code_and_details(error: grpc.RpcError) -> tuple[grpc.StatusCode, str]:
    """Status code and text of a failed call; UNKNOWN for what isn't one."""
    if not isinstance(error, grpc.Call):
        return grpc.StatusCode.UNKNOWN, str(error)
    return error.code(), error.details() or "no details"
