"""The way in, beside a server with mTLS: a port for joining, renewal for those inside, and word of those put out."""

from __future__ import annotations

import threading
from collections.abc import Callable

import structlog

from tersely.errors import TerselyError
from tersely.identity.authority import Authority
from tersely.identity.node import authority_folder
from tersely.identity.servicers import CertificateServicer, JoinServicer
from tersely.rpc.credentials import joining_tls
from tersely.rpc.server import GrpcServer

LOOK_EVERY_SECONDS = 1.0
_log = structlog.get_logger(__name__)


class Gate:
    """Opens the machine's authority to the network, for as long as a server runs.

    Args:
        authority: Of this machine.
        host: Address to listen on.
        join_port: Port for joining; 0: a free one.
        look: Called every second from a thread, to take from revoked nodes what they were given elsewhere.
    """

    def __init__(
        self,
        authority: Authority,
        host: str,
        join_port: int,
        look: Callable[[], None] | None = None,
    ) -> None:
        self._authority = authority
        self._host = host
        self._join_port = join_port
        self._look = look
        self._join_server: GrpcServer | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep_looking, name="revocations", daemon=True)

    @classmethod
    def beside(
        cls,
        server: GrpcServer,
        host: str,
        join_port: int,
        look: Callable[[], None] | None = None,
    ) -> Gate | None:
        """The gate of a server that takes certificates, before it starts; None where it takes none.

        A machine that has certificates but no authority has no gate: nobody joins there.

        Raises:
            IdentityInvalid: The authority's files can't be used.
        """
        if not server.secured:
            return None
        if not (authority_folder() / "ca.key").exists():
            _log.warning("no_authority_here", folder=str(authority_folder()))
            return None
        gate = cls(Authority.open(authority_folder()), host, join_port, look)
        server.add(CertificateServicer(gate._authority).register)
        return gate

    def open(self, port: int) -> str:
        """Begins to let nodes join.

        Args:
            port: Of the server with mTLS, which those who have joined then call.

        Returns:
            host:port for joining, as a process on this machine dials it.

        Raises:
            PortBusy: The port for joining is taken.
        """
        self._join_server = GrpcServer(self._host, self._join_port, security=joining_tls(self._authority))
        self._join_server.add(JoinServicer(self._authority, port).register)
        address = self._join_server.start()
        if self._look is not None:
            self._thread.start()
        return address

    def close(self) -> None:
        """Lets nobody join any more."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()
        if self._join_server is not None:
            self._join_server.stop(1.0)

    def _keep_looking(self) -> None:
        assert self._look is not None
        failing = False
        while not self._stop.wait(LOOK_EVERY_SECONDS):
            try:
                self._look()
            except (TerselyError, OSError) as error:
                if not failing:
                    _log.warning("revocations_not_passed_on", message=str(error))
                failing = True
            else:
                failing = False
