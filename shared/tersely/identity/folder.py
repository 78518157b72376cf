"""Where identities lie, and how their files are written: nobody but their owner reads a key."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from tersely.errors import IdentityInvalid

FOLDER_ENV = "TERSELY_IDENTITY"
"""Environment variable that names the folder of identities; default ~/.config/tersely/identity."""
ROLES = ("trainer", "rollout", "scorer", "judge", "client")
"""What a certificate can be for. `client` may ask scorers and judges, and is no part of any run."""


def identity_folder(given: Path | None = None) -> Path:
    """The folder of identities: `given`, else $TERSELY_IDENTITY, else ~/.config/tersely/identity. It may not exist."""
    return (given or Path(os.environ.get(FOLDER_ENV) or "~/.config/tersely/identity")).expanduser()


def role_folder(role: str, folder: Path | None = None) -> Path:
    """Where the identity for a role lies."""
    return identity_folder(folder) / role


def has_identity(role: str, folder: Path | None = None) -> bool:
    """Whether this machine has a certificate for a role."""
    return (role_folder(role, folder) / "node.pem").exists()


def has_any_identity(folder: Path | None = None) -> bool:
    """Whether this machine has a certificate at all."""
    return any(has_identity(role, folder) for role in ROLES)


def make_private_folder(folder: Path) -> None:
    """Makes a folder that only its owner can enter; one that is there stays as it is."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)


def write_private(path: Path, data: bytes) -> None:
    """Replaces a file that only its owner can read, from its first byte on; whole or not at all.

    Raises:
        OSError: It can't be written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.unlink(missing_ok=True)
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def read_private(path: Path) -> bytes:
    """Reads a file that only its owner may read.

    Raises:
        IdentityInvalid: Others can read it, or it can't be read at all.
    """
    try:
        mode = path.stat().st_mode
        if mode & 0o077:
            raise IdentityInvalid(
                f"{path} can be read by others on this machine.",
                f"If nobody did: chmod 600 {path}. Else begin anew, with new keys.",
            )
        return path.read_bytes()
    except OSError as error:
        raise IdentityInvalid(
            f"{path} can't be read: {error.strerror}.", "Restore it, or join again with a new token."
        ) from None


def read_state(path: Path) -> dict[str, Any]:
    """Reads a JSON object of ours; an empty one where the file is not there yet.

    Raises:
        IdentityInvalid: It is damaged.
    """
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError):
        raise IdentityInvalid(f"{path} is damaged.", "Restore it from a copy.") from None
    if not isinstance(found, dict):
        raise IdentityInvalid(f"{path} is damaged.", "Restore it from a copy.")
    return found


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Replaces a JSON object of ours."""
    write_private(path, json.dumps(state, indent=1, sort_keys=True).encode() + b"\n")
