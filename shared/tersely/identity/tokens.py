"""Join tokens: one use, 15 minutes, and stored only as a hash.

A token reads ``tersely-ROLE-`` and 64 bytes in URL-safe base64: the SHA-256 of the authority's certificate, by which
the joining machine knows whom to trust, and a secret of 32 bytes, by which it is trusted. What the role is, the
authority remembers; in the token it is for people, and for the joining machine to look where the certificate will go.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import hashlib
import hmac
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock

from tersely.errors import IdentityInvalid, IdentityMissing, TokenRefused
from tersely.identity.certificates import utc_now
from tersely.identity.folder import ROLES, read_state, write_state

LIFETIME = datetime.timedelta(minutes=15)
"""How long a token can be used."""
_PREFIX = "tersely-"
_HASH_BYTES = 32
_SECRET_BYTES = 32
_ENCODED_CHARACTERS = 86
_KEPT = datetime.timedelta(days=7)
_WAY_OUT = "Make another one on the trainer's machine: tersely token create --role ROLE."


@dataclass(frozen=True, slots=True)
class JoinToken:
    """What is handed to whoever may join.

    Attributes:
        role: What the certificate will be for.
        fingerprint: SHA-256 of the authority's certificate.
        secret: Known to the holder; the authority keeps its hash.
    """

    role: str
    fingerprint: bytes
    secret: bytes

    @classmethod
    def parse(cls, text: str) -> JoinToken:
        """Reads a token as it is shown.

        Raises:
            TokenRefused: It is none; the message does not repeat it.
        """
        role, _, encoded = text.strip().removeprefix(_PREFIX).partition("-")
        raw = b""
        if text.strip().startswith(_PREFIX) and len(encoded) == _ENCODED_CHARACTERS:
            try:
                raw = base64.b64decode(encoded + "==", altchars=b"-_", validate=True)
            except (binascii.Error, ValueError):
                raw = b""
        if role not in ROLES or len(raw) != _HASH_BYTES + _SECRET_BYTES:
            raise TokenRefused("This is no join token, or a piece of it is missing.", _WAY_OUT)
        return cls(role, raw[:_HASH_BYTES], raw[_HASH_BYTES:])

    @property
    def text(self) -> str:
        """As it is shown; a secret."""
        return f"{_PREFIX}{self.role}-" + base64.urlsafe_b64encode(self.fingerprint + self.secret).rstrip(b"=").decode()

    @property
    def token_id(self) -> str:
        """By which it is listed; tells nothing of the secret."""
        return _hash(self.secret)[:12]

    def __repr__(self) -> str:
        return f"JoinToken({self.token_id})"


class TokenBook:
    """The tokens of an authority; its file may be shared by processes.

    Args:
        folder: Of the authority.
        clock: Now.
    """

    def __init__(self, folder: Path, clock: Callable[[], datetime.datetime] = utc_now) -> None:
        self._folder = folder
        self._clock = clock

    def create(self, fingerprint: bytes, role: str, lifetime: datetime.timedelta = LIFETIME) -> JoinToken:
        """Makes a token for one node of a role.

        Raises:
            IdentityInvalid: There is no such role, or none that may join: a trainer has the authority itself.
        """
        if role not in ROLES or role == "trainer":
            raise IdentityInvalid(f"No token can be made for the role {role!r}.", "Roles: " + ", ".join(ROLES[1:]))
        token = JoinToken(role, fingerprint, secrets.token_bytes(_SECRET_BYTES))
        now = self._clock()
        with self._changing() as tokens:
            oldest = (now - _KEPT).timestamp()
            for number in [number for number, entry in tokens.items() if entry["expires"] < oldest]:
                del tokens[number]
            tokens[token.token_id] = {
                "hash": _hash(token.secret),
                "role": role,
                "created": now.timestamp(),
                "expires": (now + lifetime).timestamp(),
                "used": None,
                "node": "",
                "revoked": None,
            }
        return token

    def use(self, secret: bytes, name_for: Callable[[str], str]) -> tuple[str, str, str]:
        """Takes a token in: from here on it is used, whatever comes of the join.

        Args:
            secret: Secret part of the token.
            name_for: Gives the name of the node for its role.

        Returns:
            Id of the token, role and name of the node.

        Raises:
            TokenRefused: It is not known, used, expired or revoked. Which of them, only its holder is told.
        """
        wanted = _hash(secret)
        now = self._clock().timestamp()
        with self._changing() as tokens:
            entry = tokens.get(wanted[:12])
            if entry is None or not hmac.compare_digest(entry["hash"], wanted):
                raise TokenRefused("This token is not known here.", _WAY_OUT)
            state = state_of(entry, now)
            if state != "open":
                raise TokenRefused(f"This token is {state}.", _WAY_OUT)
            entry["used"], entry["node"] = now, name_for(entry["role"])
            return wanted[:12], entry["role"], entry["node"]

    def revoke(self, token_id: str) -> dict[str, Any]:
        """Makes a token useless, and tells what it was: `node` names who joined with it.

        Raises:
            IdentityMissing: There is no such token.
        """
        with self._changing() as tokens:
            if token_id not in tokens:
                raise IdentityMissing(f"There is no token {token_id!r}.", "tersely token list shows them.")
            entry: dict[str, Any] = tokens[token_id]
            if entry["revoked"] is None:
                entry["revoked"] = self._clock().timestamp()
            return dict(entry)

    def entries(self) -> dict[str, dict[str, Any]]:
        """All tokens of the last days by id, without anything by which one could be used: with their `state`."""
        now = self._clock().timestamp()
        found = read_state(self._folder / "tokens.json")
        return {
            number: {**{key: value for key, value in entry.items() if key != "hash"}, "state": state_of(entry, now)}
            for number, entry in found.items()
        }

    @contextmanager
    def _changing(self) -> Iterator[dict[str, dict[str, Any]]]:
        path = self._folder / "tokens.json"
        with filelock.FileLock(self._folder / ".lock", mode=0o600):
            tokens = read_state(path)
            yield tokens
            write_state(path, tokens)


def state_of(entry: dict[str, Any], now: float) -> str:
    """What became of a token: open, used, revoked or expired."""
    if entry["revoked"] is not None:
        return "revoked"
    if entry["used"] is not None:
        return "used"
    return "expired" if now >= entry["expires"] else "open"


def _hash(secret: bytes) -> str:
    return hashlib.sha256(b"tersely join token\0" + secret).hexdigest()
