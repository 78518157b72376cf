"""Joining: from a token to a certificate of one's own."""

from __future__ import annotations

import platform
import ssl
from pathlib import Path

import grpc
from cryptography import x509

from tersely.errors import AuthorityMismatch, IdentityInvalid, TrainerUnreachable
from tersely.identity.certificates import fingerprint_of, make_key, make_request, signed_by
from tersely.identity.folder import has_identity, role_folder
from tersely.identity.node import NodeIdentity, save_identity
from tersely.identity.tokens import JoinToken
from tersely.rpc.address import Address
from tersely.rpc.client import call
from tersely.rpc.credentials import joining_channel
from tersely.v1 import identity_pb2, identity_pb2_grpc

DEFAULT_PORT = 7071
"""Where nodes join unless told otherwise (`rpc.join_port`)."""
_SECONDS = 10.0


def enroll(address: Address, token: JoinToken, *, replace: bool = False, folder: Path | None = None) -> NodeIdentity:
    """Gets a certificate for a token and writes it down.

    The token's secret is only sent to a server that has shown a certificate of the authority the token names.

    Args:
        address: Of the port for joining.
        token: The token.
        replace: Take the place of an identity for this role that is there already.
        folder: Folder of identities; None: that of this machine.

    Raises:
        TrainerUnreachable: Nobody answers there with TLS.
        AuthorityMismatch: Who answers is not of the token's authority.
        TokenRefused: The token is not taken (any more).
        IdentityInvalid: There is an identity already.
    """
    if has_identity(token.role, folder) and not replace:
        raise IdentityInvalid(
            f"This machine has joined as {token.role} already ({role_folder(token.role, folder)}).",
            "Use it, or take its place with --replace.",
        )
    authority_pem = _authority_of(address, token)
    key = make_key()
    request = identity_pb2.EnrollRequest(token_secret=token.secret, request_pem=make_request(key), host=platform.node())
    with joining_channel(address, authority_pem, ()) as channel:
        stub = identity_pb2_grpc.JoinServiceStub(channel)
        answer = call(stub.Enroll, request, address=str(address), deadline_seconds=_SECONDS, wait_for_ready=False)
    renewed_at = str(Address(address.host, answer.port)) if answer.port else ""
    return save_identity(
        token.role,
        key,
        answer.certificate_pem,
        authority_pem,
        revocations_pem=answer.revocations_pem,
        address=renewed_at,
        folder=folder,
    )


def _authority_of(address: Address, token: JoinToken) -> bytes:
    """The authority's certificate, which must be the one that the token names and have signed who answers."""
    try:
        shown = ssl.get_server_certificate((address.host, address.port), timeout=_SECONDS).encode()
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise TrainerUnreachable(
            f"Nobody answers with TLS at {address} ({error}).",
            "Check that the trainer runs with rpc.host beyond loopback (or `tersely ca serve`), the address, its"
            " rpc.join_port, and that no firewall is between.",
        ) from None
    with _pinned(address, shown) as channel:
        stub = identity_pb2_grpc.JoinServiceStub(channel)
        answer = call(
            stub.GetAuthority,
            identity_pb2.GetAuthorityRequest(),
            address=str(address),
            deadline_seconds=_SECONDS,
            wait_for_ready=False,
        )
    try:
        authority, leaf = (x509.load_pem_x509_certificate(pem) for pem in (answer.authority_pem, shown))
        good = fingerprint_of(authority) == token.fingerprint and signed_by(leaf, authority)
    except ValueError:
        good = False
    if not good:
        raise AuthorityMismatch(
            f"Who answers at {address} is not of the authority {token.fingerprint.hex()[:16]}... that the token names.",
            "Check the address; compare `tersely ca show` on the trainer's machine; make a new token there.",
        )
    return answer.authority_pem


def _pinned(address: Address, shown: bytes) -> grpc.Channel:
    """A channel to exactly the server that has shown this certificate; nothing secret goes over it."""
    return joining_channel(address, shown, ())
