"""Keeps a node's certificate and its list of revoked ones up to date while a process runs."""

from __future__ import annotations

import datetime
import platform
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
import structlog

from tersely.errors import TerselyError
from tersely.identity.authority import Authority
from tersely.identity.certificates import make_key, make_request, utc_now
from tersely.identity.folder import identity_folder
from tersely.identity.node import authority_folder, issue_locally, load_identity, save_identity
from tersely.identity.revocations import Revocations
from tersely.rpc.errors import from_rpc_error
from tersely.v1 import identity_pb2, identity_pb2_grpc

EVERY_SECONDS = 30.0
CALL_SECONDS = 10.0
_log = structlog.get_logger(__name__)


class Renewal:
    """Looks every half minute, more often for certificates of short life, from a thread of its own.

    On the machine of the authority certificates are signed directly; elsewhere by whoever serves CertificateService.

    Args:
        role: Whose identity.
        channel: Channel to who renews; None on the machine of the authority.
        address: Its address, for messages.
        every_seconds: Most time between two looks.
        clock: Now.
        folder: Folder of identities; None: that of this machine.
    """

    def __init__(
        self,
        role: str,
        channel: grpc.Channel | None = None,
        address: str = "",
        *,
        every_seconds: float = EVERY_SECONDS,
        clock: Callable[[], datetime.datetime] = utc_now,
        folder: Path | None = None,
    ) -> None:
        self._role = role
        self._folder = identity_folder(folder)
        self._stub = None if channel is None else identity_pb2_grpc.CertificateServiceStub(channel)
        self._address = address
        self._every_seconds = every_seconds
        self._clock = clock
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="certificate-renewal", daemon=True)
        self.failures = 0

    def start(self) -> Self:
        """Begins to look."""
        self._thread.start()
        return self

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the thread."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def look(self) -> bool:
        """Renews what is due now, and asks for the newest list of revoked certificates.

        Returns:
            Whether the certificate was renewed.

        Raises:
            TerselyError: It could not be done; it is tried again.
        """
        identity = load_identity(self._role, self._folder)
        due = identity.certificate.renewal_due(self._clock())
        home = authority_folder(self._folder)
        authority = Authority.open(home) if (home / "ca.key").exists() else None
        if authority is not None and authority.pem == identity.authority_pem:
            if due:
                issue_locally(self._role, authority, platform.node(), self._folder)
        elif self._stub is not None:
            self._fetch_revocations(self._stub)
            if due:
                self._renew(self._stub, identity.authority_pem)
        else:
            return False
        if due:
            _log.info(
                "certificate_renewed",
                role=self._role,
                until=load_identity(self._role, self._folder).certificate.not_after,
            )
        return due

    def _renew(self, stub: identity_pb2_grpc.CertificateServiceStub, authority_pem: bytes) -> None:
        key = make_key()
        try:
            answer = stub.Renew(identity_pb2.RenewRequest(request_pem=make_request(key)), timeout=CALL_SECONDS)
        except grpc.RpcError as error:
            raise from_rpc_error(error, self._address) from None
        save_identity(self._role, key, answer.certificate_pem, authority_pem, folder=self._folder)

    def _fetch_revocations(self, stub: identity_pb2_grpc.CertificateServiceStub) -> None:
        try:
            answer = stub.GetRevocations(identity_pb2.GetRevocationsRequest(), timeout=CALL_SECONDS)
        except grpc.RpcError as error:
            raise from_rpc_error(error, self._address) from None
        Revocations.of(load_identity(self._role, self._folder)).take(answer.revocations_pem)

    def _run(self) -> None:
        pause = 0.0
        while not self._stop.wait(pause):
            try:
                self.look()
                lifetime = load_identity(self._role, self._folder).certificate.lifetime
                pause = min(self._every_seconds, lifetime.total_seconds() / 10)
            except (TerselyError, OSError) as error:
                self.failures += 1
                _log.warning("certificate_not_renewed", role=self._role, message=str(error), failures=self.failures)
            else:
                self.failures = 0
