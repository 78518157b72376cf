"""Stands before every call on a server with mTLS: whose certificate, still valid, and may it call this?"""

from __future__ import annotations

import datetime
import functools
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import grpc
import structlog

from tersely.errors import AccessDenied, CertificateRefused, TerselyError
from tersely.identity.certificates import NodeCertificate, read_certificate, utc_now
from tersely.identity.revocations import Revocations
from tersely.rpc.errors import to_status
from tersely.rpc.roles import MAY_CALL

Context = grpc.aio.ServicerContext
_LOG_EVERY_SECONDS = 5.0
_log = structlog.get_logger(__name__)
_read = functools.lru_cache(maxsize=1024)(read_certificate)


def peer_of(context: Context[Any, Any]) -> NodeCertificate | None:
    """Who calls, by the certificate that TLS has checked; None without one.

    Raises:
        CertificateRefused: The certificate is none of a node.
    """
    found = tuple(context.auth_context().get("x509_pem_cert", ()))
    return _read(found[0]) if found else None


class Guard(grpc.aio.ServerInterceptor):
    """Refuses, at each call, who has no certificate of ours, a revoked or expired one, or the wrong role.

    TLS itself looks at a certificate only when a connection is made; connections live for days.

    Args:
        revocations: Looked up at each call, and before each message that is sent to a node.
        table: Roles by method; what is not in it is refused.
        clock: Now.
    """

    def __init__(
        self,
        revocations: Revocations,
        table: Mapping[str, frozenset[str]] = MAY_CALL,
        clock: Callable[[], datetime.datetime] = utc_now,
    ) -> None:
        self._revocations = revocations
        self._table = table
        self._clock = clock
        self._logged = 0.0
        self.refused = 0

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Puts the check before the handler of a method; gRPC calls this once per call."""
        handler = await continuation(handler_call_details)
        # No handler: gRPC answers UNIMPLEMENTED.
        return None if handler is None else self._guarded(handler, str(handler_call_details.method))

    def check(self, method: str, peer: NodeCertificate | None) -> None:
        """Lets a call pass.

        Raises:
            CertificateRefused: No certificate, or a revoked or expired one.
            AccessDenied: The role may not call this.
        """
        if peer is None:
            raise CertificateRefused("This server needs a certificate.", "Join first: tersely join HOST --token -")
        self._check_standing(peer)
        if peer.role not in self._table.get(method, ()):
            raise AccessDenied(f"The role {peer.role} may not call {method}.", "Use a certificate of a role that may.")

    def _check_standing(self, peer: NodeCertificate) -> None:
        if self._revocations.holds(peer.serial):
            raise CertificateRefused(f"The certificate of {peer.name} was revoked.", "Ask for a new token, and join.")
        now = self._clock()
        if now >= peer.not_after or now < peer.not_before:
            raise CertificateRefused(
                f"The certificate of {peer.name} is valid from {peer.not_before:%F %T} to {peer.not_after:%F %T} UTC,"
                f" and now is {now:%F %T}.",
                "Check both clocks; if it has expired, join again with a new token.",
            )

    async def _enter(self, method: str, context: Context[Any, Any]) -> NodeCertificate:
        peer = None
        try:
            peer = peer_of(context)
            self.check(method, peer)
            assert peer is not None
            return peer
        except TerselyError as error:
            self._note(error, method, peer, context)
            await context.abort_with_status(to_status(error))
            raise  # not reached: abort raises

    async def _stay(self, method: str, peer: NodeCertificate, context: Context[Any, Any]) -> None:
        """Ends a stream to a node that was revoked meanwhile; one whose certificate ran out is asked for the next."""
        try:
            self._check_standing(peer)
        except CertificateRefused as error:
            if not self._revocations.holds(peer.serial):
                await context.abort(grpc.StatusCode.UNAVAILABLE, "The certificate has expired: call again.")
            self._note(error, method, peer, context)
            await context.abort_with_status(to_status(error))

    def _note(self, error: TerselyError, method: str, peer: NodeCertificate | None, context: Context[Any, Any]) -> None:
        self.refused += 1
        now = time.monotonic()
        if now - self._logged >= _LOG_EVERY_SECONDS:  # whoever is refused can't fill the disk by it
            self._logged = now
            name = None if peer is None else peer.name
            _log.warning(
                "call_refused", method=method, node=name, kind=error.kind, peer=context.peer(), refused=self.refused
            )

    def _guarded(self, handler: Any, method: str) -> Any:
        """A handler of the same arity that checks first."""
        codecs = {
            "request_deserializer": handler.request_deserializer,
            "response_serializer": handler.response_serializer,
        }
        if handler.response_streaming:
            inner = handler.stream_stream if handler.request_streaming else handler.unary_stream
            make = (
                grpc.stream_stream_rpc_method_handler
                if handler.request_streaming
                else grpc.unary_stream_rpc_method_handler
            )
            return make(self._guarded_stream(inner, method), **codecs)
        inner = handler.stream_unary if handler.request_streaming else handler.unary_unary
        make_unary = (
            grpc.stream_unary_rpc_method_handler if handler.request_streaming else grpc.unary_unary_rpc_method_handler
        )

        async def unary(request: Any, context: Context[Any, Any]) -> Any:
            await self._enter(method, context)
            return await inner(request, context)

        return make_unary(unary, **codecs)

    def _guarded_stream(self, inner: Any, method: str) -> Any:
        async def stream(request: Any, context: Context[Any, Any]) -> AsyncIterator[Any]:
            peer = await self._enter(method, context)
            async for message in inner(request, context):
                await self._stay(method, peer, context)
                yield message

        async def writes_itself(request: Any, context: Context[Any, Any]) -> None:
            await self._enter(method, context)
            await inner(request, context)

        return writes_itself if inspect.iscoroutinefunction(inner) else stream
