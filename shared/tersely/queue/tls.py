"""TLS to a Redis server whose certificate is of our own authority, as the one that `tersely up` starts on a LAN."""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis.connection import Connection

SERVER_ROLE = "trainer"
"""The queue server is on the trainer's machine and shows the trainer's certificate."""


@dataclass(frozen=True, slots=True)
class QueueTls:
    """Files of an identity; they are read at each connection, so a renewed certificate is used from the next one on.

    Attributes:
        certificate_file: Key and certificate to show.
        authority_file: Certificate of the authority that must have signed the server's.
        server_name: Name that the server's certificate must have, whatever address it is reached at.
    """

    certificate_file: Path
    authority_file: Path
    server_name: str

    def context(self) -> ssl.SSLContext:
        """How connections are made: TLS 1.3, both sides with a certificate of the authority.

        Raises:
            OSError: A file can't be read (ssl.SSLError is one).
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_verify_locations(self.authority_file)
        context.load_cert_chain(self.certificate_file)
        return context


def queue_tls(role: str | None) -> QueueTls:
    """What this machine shows as a node of that role; None: of any that it has.

    Raises:
        IdentityMissing, IdentityInvalid: It has no usable identity for it.
    """
    from tersely.identity.certificates import server_name
    from tersely.identity.node import load_identity

    folder = load_identity(role).folder
    return QueueTls(folder / "node.pem", folder / "ca.pem", server_name(SERVER_ROLE))


class OwnTlsConnection(Connection):
    """A connection as `QueueTls` has it; redis-py's own checks the address, which on a LAN changes.

    Args:
        own_tls: Files to use.
        kwargs: As for any connection.
    """

    def __init__(self, own_tls: QueueTls, **kwargs: Any) -> None:
        self._own_tls = own_tls
        super().__init__(**kwargs)  # type: ignore[no-untyped-call]

    def _connect(self) -> socket.socket:
        plain: socket.socket = super()._connect()  # type: ignore[no-untyped-call]
        try:
            return self._own_tls.context().wrap_socket(plain, server_hostname=self._own_tls.server_name)
        except BaseException:
            plain.close()
            raise
