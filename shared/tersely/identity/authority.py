"""The certificate authority: a key on the trainer's machine that signs what nodes show each other."""

from __future__ import annotations

import datetime
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tersely.errors import CertificateRefused, IdentityInvalid, IdentityMissing
from tersely.identity.certificates import (
    JOIN,
    authority_certificate,
    fingerprint_of,
    key_pem,
    make_key,
    node_certificate,
    pem_of,
    read_key,
    utc_now,
)
from tersely.identity.folder import make_private_folder, read_private, read_state, write_private, write_state

NODE_LIFETIME = datetime.timedelta(days=30)
"""How long a node's certificate is valid; it is renewed when a third of that is left."""
REVOCATIONS_FILE = "revoked.pem"


class Authority:
    """Signs, renews and revokes; its files are in one folder, and processes may share it.

    Args:
        folder: ``ca`` in the folder of identities.
        lifetime: Of the certificates signed; None: as the authority was made with.
        clock: Now.
    """

    def __init__(
        self,
        folder: Path,
        lifetime: datetime.timedelta | None = None,
        clock: Callable[[], datetime.datetime] = utc_now,
    ) -> None:
        self.folder = folder
        self._clock = clock
        self._key = read_key(read_private(folder / "ca.key"), str(folder / "ca.key"))
        try:
            self.certificate = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
        except (OSError, ValueError):
            raise IdentityInvalid(f"{folder / 'ca.pem'} can't be read.", "Restore it from a copy.") from None
        seconds = read_state(folder / "settings.json").get("node_lifetime_seconds", NODE_LIFETIME.total_seconds())
        self.lifetime = lifetime or datetime.timedelta(seconds=seconds)

    @classmethod
    def create(
        cls,
        folder: Path,
        lifetime: datetime.timedelta = NODE_LIFETIME,
        clock: Callable[[], datetime.datetime] = utc_now,
    ) -> Authority:
        """Makes a new authority.

        Args:
            folder: Where.
            lifetime: Of the certificates that it will sign.
            clock: Now.

        Raises:
            IdentityInvalid: There is one already.
        """
        if (folder / "ca.key").exists():
            raise IdentityInvalid(
                f"{folder} holds a certificate authority already.",
                "Use it, or move the folder away; every node then joins again.",
            )
        make_private_folder(folder.parent)
        make_private_folder(folder)
        key = make_key()
        write_private(folder / "ca.pem", pem_of(authority_certificate(key, clock())))
        write_state(folder / "settings.json", {"node_lifetime_seconds": lifetime.total_seconds()})
        write_private(folder / "ca.key", key_pem(key))
        made = cls(folder, clock=clock)
        made._write_revocations({})
        return made

    @classmethod
    def open(cls, folder: Path) -> Authority:
        """Opens the authority of this machine.

        Raises:
            IdentityMissing: There is none.
            IdentityInvalid: Its files are damaged, or others can read the key.
        """
        if not (folder / "ca.key").exists():
            raise IdentityMissing(
                f"There is no certificate authority in {folder}.",
                "On the trainer's machine: tersely ca init.",
            )
        return cls(folder)

    @property
    def pem(self) -> bytes:
        """Its certificate."""
        return pem_of(self.certificate)

    @property
    def fingerprint(self) -> bytes:
        """SHA-256 of its certificate."""
        return fingerprint_of(self.certificate)

    def new_name(self, role: str, host: str) -> str:
        """A name for a node that nobody else has, like "rollout-mini2-a1b2c3"."""
        safe = re.sub(r"[^A-Za-z0-9.-]+", "-", host)[:40].strip("-.") or "host"
        return f"{role}-{safe}-{secrets.token_hex(3)}"

    def issue(self, key: ec.EllipticCurvePublicKey, name: str, role: str, *, token_id: str = "") -> bytes:
        """Signs a certificate for a node's key.

        Args:
            key: The node's public key.
            name: The node.
            role: One of `tersely.identity.folder.ROLES`.
            token_id: The token it joined with; empty: none.

        Returns:
            The certificate, PEM.

        Raises:
            CertificateRefused: The node was revoked.
        """
        with self._changing() as nodes:
            node = nodes.setdefault(name, {"role": role, "token": token_id, "certificates": {}, "revoked": None})
            if node["revoked"] is not None:
                raise CertificateRefused(f"{name} was revoked.", "Join again with a new token.")
            signed = self._sign(key, name, role)
            kept = {number: end for number, end in node["certificates"].items() if end > self._clock().timestamp()}
            node["certificates"] = {**kept, str(signed.serial_number): signed.not_valid_after_utc.timestamp()}
            node["signed"] = self._clock().timestamp()
        return pem_of(signed)

    def issue_for_joining(self, key: ec.EllipticCurvePublicKey) -> bytes:
        """Signs a certificate for the port at which nodes join; it is good for nothing else."""
        return pem_of(self._sign(key, JOIN, JOIN))

    def revoke(self, name: str) -> bool:
        """Revokes all certificates of a node; false if it was revoked before.

        Raises:
            IdentityMissing: Nobody of that name has joined.
        """
        with self._changing() as nodes:
            node = nodes.get(name)
            if node is None:
                raise IdentityMissing(f"No node {name!r} has joined here.", "tersely ca show lists them.")
            if node["revoked"] is not None:
                return False
            node["revoked"] = self._clock().timestamp()
            self._write_revocations(nodes)
        return True

    def nodes(self) -> dict[str, dict[str, Any]]:
        """Every node that ever joined: role, token, certificates (number to Unix time of its end), revoked."""
        return read_state(self.folder / "nodes.json")

    @property
    def revocations_file(self) -> Path:
        """The signed list of revoked certificates; replaced as a whole at each revocation."""
        return self.folder / REVOCATIONS_FILE

    def _sign(self, key: ec.EllipticCurvePublicKey, name: str, role: str) -> x509.Certificate:
        return node_certificate(
            issuer=self.certificate,
            issuer_key=self._key,
            key=key,
            name=name,
            role=role,
            lifetime=self.lifetime,
            now=self._clock(),
        )

    @contextmanager
    def _changing(self) -> Iterator[dict[str, dict[str, Any]]]:
        """The nodes, for this process alone; written back at the end of the block."""
        path = self.folder / "nodes.json"
        with filelock.FileLock(self.folder / ".lock", mode=0o600):
            nodes = read_state(path)
            yield nodes
            write_state(path, nodes)

    def _write_revocations(self, nodes: dict[str, dict[str, Any]]) -> None:
        now = self._clock()
        # An old list that somebody plays back is known by its number.
        number = sum(node["revoked"] is not None for node in nodes.values())
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(now)
            .next_update(now + datetime.timedelta(days=3650))
            .add_extension(x509.CRLNumber(number), critical=False)
        )
        for node in nodes.values():
            if node["revoked"] is None:
                continue
            when = datetime.datetime.fromtimestamp(node["revoked"], datetime.UTC)
            for serial in node["certificates"]:
                entry = x509.RevokedCertificateBuilder().serial_number(int(serial)).revocation_date(when).build()
                builder = builder.add_revoked_certificate(entry)
        signed = builder.sign(self._key, hashes.SHA256())
        write_private(self.revocations_file, signed.public_bytes(serialization.Encoding.PEM))
