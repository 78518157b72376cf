"""A node's own identity: its key, its certificate, and whom it trusts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from tersely.errors import CertificateRefused, IdentityInvalid, IdentityMissing
from tersely.identity.authority import REVOCATIONS_FILE, Authority
from tersely.identity.certificates import (
    NodeCertificate,
    key_pem,
    make_key,
    pem_of,
    read_certificate,
    read_key,
    signed_by,
    utc_now,
)
from tersely.identity.folder import (
    ROLES,
    has_identity,
    identity_folder,
    make_private_folder,
    read_private,
    read_state,
    role_folder,
    write_private,
    write_state,
)

AUTHORITY_FOLDER = "ca"
_BEGIN = b"-----BEGIN CERTIFICATE-----"


@dataclass(frozen=True, slots=True)
class NodeIdentity:
    """What a process shows, and what it trusts.

    Attributes:
        folder: Where it lies.
        certificate: What the certificate says.
        key_pem: Private key.
        certificate_pem: Certificate.
        authority_pem: Certificate of the authority.
        address: host:port of the trainer, or of who else renews certificates, when the node joined; may be empty.
    """

    folder: Path
    certificate: NodeCertificate
    key_pem: bytes
    certificate_pem: bytes
    authority_pem: bytes
    address: str = ""

    @property
    def role(self) -> str:
        """What it may do."""
        return self.certificate.role

    @property
    def name(self) -> str:
        """The node."""
        return self.certificate.name

    def __repr__(self) -> str:
        return f"NodeIdentity({self.name})"


def authority_folder(folder: Path | None = None) -> Path:
    """Where this machine's authority lies, if it has one."""
    return identity_folder(folder) / AUTHORITY_FOLDER


def load_identity(role: str | None, folder: Path | None = None) -> NodeIdentity:
    """Reads this machine's identity for a role; None: the first there is, for whom any will do.

    On the machine of the authority it is renewed first if that is due: nothing may have run there for a month.

    Raises:
        IdentityMissing: This machine has none.
        IdentityInvalid: Its files are damaged, do not belong together, or others can read the key.
    """
    if role is None:
        # A client's first, which may do least.
        role = next((each for each in reversed(ROLES) if has_identity(each, folder)), "client")
    identity = _read(role, folder)
    home = authority_folder(folder)
    if not identity.certificate.renewal_due(utc_now()) or not (home / "ca.key").exists():
        return identity
    authority = Authority.open(home)
    try:
        return issue_locally(role, authority, "", folder) if authority.pem == identity.authority_pem else identity
    except CertificateRefused:  # revoked: it is shown as it is, and refused
        return identity


def _read(role: str, folder: Path | None) -> NodeIdentity:
    home = role_folder(role, folder)
    if not (home / "node.pem").exists():
        raise IdentityMissing(
            f"This machine has no certificate for the role {role} (looked in {home}).",
            f"Get a token on the trainer's machine (tersely token create --role {role}), then: tersely join HOST"
            " --token -",
        )
    # One file for both: a renewal replaces them at once.
    key_part, begin, rest = read_private(home / "node.pem").partition(_BEGIN)
    own, authority_pem = begin + rest, read_private(home / "ca.pem")
    certificate = _checked(read_key(key_part, str(home / "node.pem")), own, authority_pem, role, str(home))
    address = str(read_state(home / "joined.json").get("address", ""))
    return NodeIdentity(home, certificate, key_part, own, authority_pem, address)


def save_identity(
    role: str,
    key: ec.EllipticCurvePrivateKey,
    certificate_pem: bytes,
    authority_pem: bytes,
    *,
    revocations_pem: bytes | None = None,
    address: str | None = None,
    folder: Path | None = None,
) -> NodeIdentity:
    """Writes an identity, or the renewed one in place of the old.

    Args:
        role: What it is for.
        key: Its key.
        certificate_pem: Its certificate.
        authority_pem: Certificate of the authority.
        revocations_pem: List of revoked certificates; None: the one there stays.
        address: Where it can be renewed; None: what is there stays.
        folder: Folder of identities; None: that of this machine.

    Raises:
        IdentityInvalid: They don't belong together; nothing is written.
    """
    home = role_folder(role, folder)
    _checked(key, certificate_pem, authority_pem, role, "the answer")
    make_private_folder(home.parent)
    make_private_folder(home)
    write_private(home / "ca.pem", authority_pem)
    if revocations_pem is not None:
        write_private(home / REVOCATIONS_FILE, revocations_pem)
    if address is not None:
        write_state(home / "joined.json", {"address": address})
    write_private(home / "node.pem", key_pem(key) + certificate_pem)
    return _read(role, folder)


def _checked(
    key: ec.EllipticCurvePrivateKey, certificate_pem: bytes, authority_pem: bytes, role: str, where: str
) -> NodeCertificate:
    try:
        signed, authority = (x509.load_pem_x509_certificate(pem) for pem in (certificate_pem, authority_pem))
        certificate = read_certificate(certificate_pem)
    except (ValueError, CertificateRefused):
        raise IdentityInvalid(f"A certificate in {where} is damaged.", "Join again with a new token.") from None
    if signed.public_key() != key.public_key() or not signed_by(signed, authority) or certificate.role != role:
        raise IdentityInvalid(f"The certificates in {where} do not belong together.", "Join again with a new token.")
    return certificate


def issue_locally(role: str, authority: Authority, host: str, folder: Path | None = None) -> NodeIdentity:
    """An identity for a service on the machine that has the authority; its name stays the same when it is renewed."""
    name = _read(role, folder).name if has_identity(role, folder) else authority.new_name(role, host)
    key = make_key()
    pem = authority.issue(key.public_key(), name, role)
    revocations = authority.revocations_file.read_bytes()
    return save_identity(role, key, pem, pem_of(authority.certificate), revocations_pem=revocations, folder=folder)
