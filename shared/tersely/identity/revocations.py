"""The list of revoked certificates, as a server looks it up at every call."""

from __future__ import annotations

import threading
from pathlib import Path

import structlog
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from tersely.errors import IdentityInvalid
from tersely.identity.authority import REVOCATIONS_FILE
from tersely.identity.folder import write_private
from tersely.identity.node import NodeIdentity, authority_folder

_log = structlog.get_logger(__name__)


def read_revocations(pem: bytes, authority_pem: bytes) -> tuple[int, frozenset[int]]:
    """Number of a list, and the serial numbers of the certificates on it.

    Raises:
        IdentityInvalid: It is none, or the authority did not sign it.
    """
    try:
        found = x509.load_pem_x509_crl(pem)
        key = x509.load_pem_x509_certificate(authority_pem).public_key()
        valid = isinstance(key, ec.EllipticCurvePublicKey) and found.is_signature_valid(key)
        number = found.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except (ValueError, TypeError, x509.ExtensionNotFound):
        valid, number = False, 0
    if not valid:
        raise IdentityInvalid("A list of revoked certificates is damaged or not the authority's.", "Join again.")
    return number, frozenset(entry.serial_number for entry in found)


class Revocations:
    """Reads the list again whenever its file changed.

    Args:
        file: The list; kept up to date by the authority on this machine or by `Renewal`.
        authority_pem: Certificate of the authority, which must have signed it.

    Raises:
        IdentityInvalid: The list is missing, damaged, or not the authority's.
    """

    def __init__(self, file: Path, authority_pem: bytes) -> None:
        self.file = file
        self._authority_pem = authority_pem
        self._lock = threading.Lock()
        self._mark: tuple[int, int, int] | None = None
        self._number = -1
        self._serials: frozenset[int] = frozenset()
        self._read()

    @classmethod
    def of(cls, identity: NodeIdentity) -> Revocations:
        """The list that concerns an identity: the authority's own on its machine, else the node's copy.

        Raises:
            IdentityInvalid: The list is missing, damaged, or not the authority's.
        """
        own = authority_folder(identity.folder.parent) / "ca.pem"
        at_home = own.exists() and own.read_bytes() == identity.authority_pem
        return cls((own.parent if at_home else identity.folder) / REVOCATIONS_FILE, identity.authority_pem)

    def holds(self, serial: int) -> bool:
        """Whether a certificate is revoked, as of now.

        A list that can't be read any more leaves the last one in force; nobody is let in again by it.
        """
        with self._lock:
            try:
                self._read()
            except IdentityInvalid as error:
                _log.error("revocations_unreadable", file=str(self.file), message=error.message)
            return serial in self._serials

    def take(self, pem: bytes) -> bool:
        """Takes a newer list into the file; false for one that is not newer.

        Raises:
            IdentityInvalid: It is none, or the authority did not sign it.
        """
        number, _ = read_revocations(pem, self._authority_pem)
        with self._lock:
            self._read()
            if number <= self._number:
                return False
            write_private(self.file, pem)
        return True

    def _read(self) -> None:
        try:
            state = self.file.stat()
            mark = (state.st_mtime_ns, state.st_size, state.st_ino)
            if mark == self._mark:
                return
            pem = self.file.read_bytes()
        except OSError as error:
            raise IdentityInvalid(f"{self.file} can't be read: {error.strerror}.", "Join again.") from None
        number, serials = read_revocations(pem, self._authority_pem)
        if number < self._number:
            raise IdentityInvalid(f"{self.file} is older than the list that was there.", "Restore the newer one.")
        self._mark, self._number, self._serials = mark, number, serials
