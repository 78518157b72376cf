"""A gRPC server on a thread of its own, with health checks and an end in good order."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import TYPE_CHECKING, Self

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from tersely.errors import PlaintextRefused, PortBusy, TerselyError
from tersely.identity.folder import has_any_identity, has_identity
from tersely.rpc.address import PLAIN, TLS, Address

if TYPE_CHECKING:
    from tersely.rpc.credentials import ServerSecurity

Registrar = Callable[[grpc.aio.Server], None]
"""Adds a servicer to a server: ``lambda server: add_XServicer_to_server(servicer, server)``."""

_OPTIONS: tuple[tuple[str, int], ...] = (
    # With SO_REUSEPORT a second server on the same port would start and take half of the connections.
    ("grpc.so_reuseport", 0),
    # Clients ping every 30 s, with or without calls.
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 20_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
)

_log = structlog.get_logger(__name__)


class GrpcServer:
    """Serves aio servicers on a background thread with its own event loop, with health checks.

    On loopback it is plaintext. Beyond, it is mTLS with this machine's identity for the role, and callers are held to
    what their roles may do (`tersely.rpc.roles`).

    Args:
        host: Address to listen on; "localhost" is taken as 127.0.0.1.
        port: Port; 0 takes a free one.
        insecure_lan: Allow plaintext beyond loopback, and use it.
        not_serving: Services, by full name, whose health is NOT_SERVING although the process itself is healthy.
        role: Whose identity is shown beyond loopback.
        security: TLS of another kind, whatever the host.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        insecure_lan: bool = False,
        not_serving: Sequence[str] = (),
        *,
        role: str = "trainer",
        security: ServerSecurity | None = None,
    ) -> None:
        # gRPC binds localhost to IPv4 and IPv6 and calls it a success when only one of them worked.
        self._wanted = Address("127.0.0.1" if host == "localhost" else host, port)
        self._insecure_lan = insecure_lan
        self._role = role
        self._security = security
        self._secured = security is not None or not (self._wanted.loopback or insecure_lan)
        self._not_serving = tuple(not_serving)
        self._registrars: list[Registrar] = []
        self._before_stop: list[Callable[[], None]] = []
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop_now: asyncio.Event | None = None
        self._grace_seconds = 0.0
        self._address: Address | None = None

    def add(self, registrar: Registrar, before_stop: Callable[[], None] | None = None) -> None:
        """Adds a servicer; before `start`.

        Args:
            registrar: Called with the server, on its thread.
            before_stop: Called on its thread when the server begins to stop; must end streams that have no end.
        """
        self._registrars.append(registrar)
        if before_stop is not None:
            self._before_stop.append(before_stop)

    @property
    def address(self) -> str:
        """host:port that a process on this machine can dial, with ``tls://`` where it takes TLS; after `start`."""
        if self._address is None:
            raise RuntimeError("the server was not started")
        return str(self._address.dialable)

    @property
    def port(self) -> int:
        """Where it listens; after `start`."""
        if self._address is None:
            raise RuntimeError("the server was not started")
        return self._address.port

    @property
    def secured(self) -> bool:
        """Whether it takes TLS only."""
        return self._secured

    def start(self) -> str:
        """Binds and serves.

        Returns:
            `address`.

        Raises:
            PlaintextRefused: The host is not loopback, there is no identity for TLS, and `insecure_lan` is not set.
            IdentityInvalid: The identity can't be used.
            PortBusy: The address is taken, or this machine can't listen on it.
        """
        if self._secured and self._security is None:
            if not has_identity(self._role):
                raise PlaintextRefused(
                    f"Listening on {self._wanted.host or 'all addresses'} would open an unencrypted port to the"
                    f" network: this machine has no certificate for the role {self._role}.",
                    "Listen on 127.0.0.1; or make certificates (tersely ca init, tersely join); or set"
                    " rpc.insecure_lan = true on a network where you trust every machine.",
                )
            from tersely.rpc.credentials import mutual_tls

            self._security = mutual_tls(self._role)
        started: Future[int] = Future()
        self._thread = threading.Thread(target=self._run, args=(started,), name="grpc-server", daemon=True)
        self._thread.start()
        try:
            port = started.result()
        except BaseException:
            self._thread.join()
            self._thread = None
            raise
        self._address = Address(self._wanted.host, port, TLS if self._secured else "")
        if not self._secured and not self._address.dialable.loopback and has_any_identity():
            self._address = self._address._replace(scheme=PLAIN)  # else processes of this machine would try TLS
        if self._security is not None and self._security.renewal is not None:
            self._security.renewal.start()
        _log.info("listening", address=str(self._address))
        return self.address

    def stop(self, grace_seconds: float = 5.0) -> None:
        """Says NOT_SERVING, lets calls in flight end, then cancels the rest. A second call does nothing.

        Args:
            grace_seconds: Time for calls in flight.
        """
        if self._thread is None or self._loop is None or self._stop_now is None:
            return
        if self._security is not None and self._security.renewal is not None:
            self._security.renewal.close()
        self._grace_seconds = grace_seconds
        self._loop.call_soon_threadsafe(self._stop_now.set)
        self._thread.join()
        self._thread = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self, started: Future[int]) -> None:
        try:
            asyncio.run(self._serve(started))
        except Exception as error:  # noqa: BLE001 - handed to the thread that called start()
            if started.done():
                _log.exception("grpc_server_failed")
            else:
                started.set_exception(error)

    async def _serve(self, started: Future[int]) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop_now = asyncio.Event()
        security = self._security
        if security is None:
            server = grpc.aio.server(options=_OPTIONS)
        else:
            server = grpc.aio.server(options=(*_OPTIONS, *security.options), interceptors=security.interceptors)
        checks = health.aio.HealthServicer()
        if security is None or security.health:
            health_pb2_grpc.add_HealthServicer_to_server(checks, server)
        for service in self._not_serving:
            await checks.set(service, health_pb2.HealthCheckResponse.NOT_SERVING)
        for registrar in self._registrars:
            registrar(server)
        try:
            if security is None:
                port = server.add_insecure_port(self._wanted.target)
            else:
                port = server.add_secure_port(self._wanted.target, security.credentials)
        except RuntimeError:
            port = 0
        if port == 0:
            await server.stop(None)
            raise bind_failure(self._wanted)
        await server.start()
        started.set_result(port)
        await self._stop_now.wait()
        await checks.enter_graceful_shutdown()
        for callback in self._before_stop:
            callback()
        await server.stop(self._grace_seconds)


def bind_failure(wanted: Address) -> TerselyError:
    """Why an address can't be listened on, which gRPC does not tell: found by binding it once with a plain socket."""
    reason = "the address is in use"
    try:
        family = socket.AF_INET6 if ":" in wanted.host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((wanted.host, wanted.port))
    except OSError as error:
        if error.errno not in (None, errno.EADDRINUSE):
            reason = error.strerror or os.strerror(error.errno)
    return PortBusy(
        f"Can't listen on {wanted}: {reason}.",
        "Stop what listens there, or choose another port (rpc.port; 0 takes a free one).",
    )
