"""JoinService, for machines without a certificate; CertificateService, for those that have one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import grpc
import structlog

from tersely.errors import CertificateRefused, TokenRefused
from tersely.identity.authority import Authority
from tersely.identity.certificates import key_of_request
from tersely.identity.tokens import TokenBook
from tersely.rpc.errors import errors_as_status
from tersely.rpc.guard import peer_of
from tersely.v1 import identity_pb2, identity_pb2_grpc

WRONG_TOKENS_PER_MINUTE = 10
"""From one address; more are refused unseen."""
_MOST_ADDRESSES = 4096
_Context = grpc.aio.ServicerContext[Any, Any]
_log = structlog.get_logger(__name__)


class Attempts:
    """Counts wrong tokens by address.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._wrong: dict[str, tuple[float, int]] = {}

    def check(self, address: str) -> None:
        """Refuses an address that had too many.

        Raises:
            TokenRefused: Too many within a minute.
        """
        began, count = self._wrong.get(address, (0.0, 0))
        if count >= WRONG_TOKENS_PER_MINUTE and self._clock() - began < 60:
            raise TokenRefused("Too many wrong tokens came from this address.", "Wait a minute.")

    def wrong(self, address: str) -> None:
        """Notes one."""
        now = self._clock()
        began, count = self._wrong.get(address, (now, 0))
        self._wrong[address] = (now, 1) if now - began >= 60 else (began, count + 1)
        while len(self._wrong) > _MOST_ADDRESSES:
            del self._wrong[next(iter(self._wrong))]


class JoinServicer(identity_pb2_grpc.JoinServiceServicer):
    """Gives certificates for tokens; for `GrpcServer` only (grpc.aio).

    Args:
        authority: Signs.
        port: Where those who have joined find the server that takes certificates; 0: none.
        tokens: Tokens; None: the authority's.
        attempts: Counts wrong ones.
    """

    def __init__(
        self,
        authority: Authority,
        port: int = 0,
        tokens: TokenBook | None = None,
        attempts: Attempts | None = None,
    ) -> None:
        self._authority = authority
        self._port = port
        self._tokens = tokens or TokenBook(authority.folder)
        self._attempts = attempts or Attempts()

    def register(self, server: grpc.aio.Server) -> None:
        """Adds itself to a server: ``server.add(servicer.register)``."""
        identity_pb2_grpc.add_JoinServiceServicer_to_server(self, server)

    async def GetAuthority(  # noqa: N802 - gRPC's name
        self, request: identity_pb2.GetAuthorityRequest, context: _Context
    ) -> identity_pb2.GetAuthorityResponse:
        """Tells who signs here."""
        return identity_pb2.GetAuthorityResponse(authority_pem=self._authority.pem)

    async def Enroll(  # noqa: N802 - gRPC's name
        self, request: identity_pb2.EnrollRequest, context: _Context
    ) -> identity_pb2.EnrollResponse:
        """Takes the token in and signs."""
        async with errors_as_status(context):
            # ipv4:192.168.1.20:50051: another port is the same machine.
            source = context.peer().rpartition(":")[0]
            self._attempts.check(source)
            try:
                answer = await asyncio.to_thread(self._enroll, request)
            except TokenRefused as error:
                self._attempts.wrong(source)
                _log.warning("join_refused", peer=context.peer(), message=error.message)
                raise
        return answer

    def _enroll(self, request: identity_pb2.EnrollRequest) -> identity_pb2.EnrollResponse:
        key = key_of_request(request.request_pem)
        token_id, role, name = self._tokens.use(
            request.token_secret, lambda role: self._authority.new_name(role, request.host)
        )
        certificate = self._authority.issue(key, name, role, token_id=token_id)
        _log.info("node_enrolled", node=name, role=role, token=token_id)
        return identity_pb2.EnrollResponse(
            certificate_pem=certificate,
            revocations_pem=self._authority.revocations_file.read_bytes(),
            port=self._port,
        )


class CertificateServicer(identity_pb2_grpc.CertificateServiceServicer):
    """Renews certificates of those who show one; for servers with mTLS only.

    Args:
        authority: Signs.
    """

    def __init__(self, authority: Authority) -> None:
        self._authority = authority

    def register(self, server: grpc.aio.Server) -> None:
        """Adds itself to a server: ``server.add(servicer.register)``."""
        identity_pb2_grpc.add_CertificateServiceServicer_to_server(self, server)

    async def Renew(  # noqa: N802 - gRPC's name
        self, request: identity_pb2.RenewRequest, context: _Context
    ) -> identity_pb2.RenewResponse:
        """Signs the next certificate, with the name and role of the caller's."""
        async with errors_as_status(context):
            peer = peer_of(context)
            if peer is None:
                raise CertificateRefused("Nothing to renew: no certificate was shown.", "Join with a token.")
            key = key_of_request(request.request_pem)
            pem = await asyncio.to_thread(self._authority.issue, key, peer.name, peer.role)
            _log.info("certificate_renewed_for", node=peer.name, role=peer.role)
        return identity_pb2.RenewResponse(certificate_pem=pem)

    async def GetRevocations(  # noqa: N802 - gRPC's name
        self, request: identity_pb2.GetRevocationsRequest, context: _Context
    ) -> identity_pb2.GetRevocationsResponse:
        """Gives the list as it is now."""
        async with errors_as_status(context):
            pem = self._authority.revocations_file.read_bytes()
        return identity_pb2.GetRevocationsResponse(revocations_pem=pem)
