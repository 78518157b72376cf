"""Certificates as they are used here: a name, a role, and host names that stand for roles.

A server is known by its role and not by its address: laptops change addresses. A certificate for the role R carries the
DNS names ``R.tersely`` and ``node.tersely``; who dials a trainer checks for ``trainer.tersely``, so that no other
node's certificate can stand in for the trainer's.
"""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tersely.errors import CertificateRefused, IdentityInvalid, TokenRefused
from tersely.identity.folder import ROLES

ANY_ROLE = "node"
"""Stands for any role where a server is dialled by somebody who does not mind which it is."""
JOIN = "join"
"""Stands for the port at which nodes join."""
ORGANIZATION = "tersely"
SERVING_ROLES = frozenset({"trainer", "scorer", "judge"})
MOST_REQUEST_BYTES = 8192
CLOCKS_APART = datetime.timedelta(minutes=5)
"""Certificates are valid from so long before they are signed: clocks on a LAN are not exactly the same."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,63}\Z")


def server_name(role: str) -> str:
    """DNS name by which a server of this role is known in its certificate."""
    return f"{role}.tersely"


@dataclass(frozen=True, slots=True)
class NodeCertificate:
    """What a node's certificate says.

    Attributes:
        name: The node.
        role: What it may do, one of `ROLES`.
        serial: Number of the certificate, never used twice.
        not_before: When it begins to be valid.
        not_after: When it expires.
    """

    name: str
    role: str
    serial: int
    not_before: datetime.datetime
    not_after: datetime.datetime

    @property
    def lifetime(self) -> datetime.timedelta:
        """For how long it was signed."""
        return self.not_after - self.not_before - CLOCKS_APART

    def renewal_due(self, now: datetime.datetime) -> bool:
        """Whether less than a third of its time is left."""
        return now >= self.not_after - self.lifetime / 3


def utc_now() -> datetime.datetime:
    """Now, with its zone."""
    return datetime.datetime.now(datetime.UTC)


def read_certificate(pem: bytes) -> NodeCertificate:
    """Reads a node's certificate. Who signed it is not looked at.

    Raises:
        CertificateRefused: It is none of a node.
    """
    try:
        found = x509.load_pem_x509_certificate(pem)
        roles = found.subject.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME)
        names = found.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    except ValueError:
        raise CertificateRefused("What was sent as a certificate is none.", "Join again with a new token.") from None
    if len(roles) != 1 or len(names) != 1 or roles[0].value not in ROLES:
        raise CertificateRefused("The certificate names no role that is known here.", "Join again with a new token.")
    return NodeCertificate(
        str(names[0].value),
        str(roles[0].value),
        found.serial_number,
        found.not_valid_before_utc,
        found.not_valid_after_utc,
    )


def make_key() -> ec.EllipticCurvePrivateKey:
    """A new private key (P-256)."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A private key as PEM, not encrypted: it goes into a file of its owner."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def read_key(pem: bytes, where: str) -> ec.EllipticCurvePrivateKey:
    """Reads a private key.

    Raises:
        IdentityInvalid: It is none of ours.
    """
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise IdentityInvalid(f"{where} holds no private key of ours.", "Restore it, or join again with a new token.")
    return key


def make_request(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A signing request for a key, PEM; it proves that the sender has the key, and says nothing else."""
    subject = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, ORGANIZATION)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM)


def key_of_request(pem: bytes) -> ec.EllipticCurvePublicKey:
    """The public key in a signing request whose sender has the private one.

    Raises:
        TokenRefused: It is no such request.
    """
    key: object = None
    if len(pem) <= MOST_REQUEST_BYTES:
        try:
            request = x509.load_pem_x509_csr(pem)
            key = request.public_key() if request.is_signature_valid else None
        except (ValueError, TypeError):
            key = None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise TokenRefused("The signing request is none that is signed here.", "Run the same version of tersely.")
    return key


def node_certificate(
    *,
    issuer: x509.Certificate,
    issuer_key: ec.EllipticCurvePrivateKey,
    key: ec.EllipticCurvePublicKey,
    name: str,
    role: str,
    lifetime: datetime.timedelta,
    now: datetime.datetime,
) -> x509.Certificate:
    """Signs a certificate for a node, or (role `JOIN`) for the port at which nodes join.

    Raises:
        IdentityInvalid: The name can't be one.
    """
    if not _NAME.match(name):
        raise IdentityInvalid(f"{name!r} can't be the name of a node.", "Use letters, digits, dots and dashes.")
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, ORGANIZATION),
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, role),
            x509.NameAttribute(NameOID.COMMON_NAME, name),
        ]
    )
    serves = role in SERVING_ROLES or role == JOIN
    uses = [ExtendedKeyUsageOID.SERVER_AUTH] if serves else []
    uses += [ExtendedKeyUsageOID.CLIENT_AUTH] if role != JOIN else []
    names = [server_name(role)] + ([server_name(ANY_ROLE)] if role != JOIN else [])
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCKS_APART)
        .not_valid_after(now + lifetime)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage(uses), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(each) for each in names]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )


def authority_certificate(key: ec.EllipticCurvePrivateKey, now: datetime.datetime) -> x509.Certificate:
    """The certificate of an authority, signed by itself, for ten years; it signs nodes and no other authority."""
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, ORGANIZATION),
            x509.NameAttribute(NameOID.COMMON_NAME, "tersely certificate authority"),
        ]
    )
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=3650))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def pem_of(certificate: x509.Certificate) -> bytes:
    """A certificate as PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def fingerprint_of(certificate: x509.Certificate) -> bytes:
    """SHA-256 of a certificate."""
    return certificate.fingerprint(hashes.SHA256())


def signed_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    """Whether an authority signed a certificate directly."""
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True
