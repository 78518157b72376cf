"""Files that are either the old one or the new one, never half of each."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def write_atomic(path: Path, data: bytes | bytearray | memoryview | str, *, durable: bool = True) -> None:
    """Replaces a file: temporary name in the same folder, fsync, rename, fsync of the folder.

    Args:
        path: File to replace or make; its folder must exist.
        data: New contents; text is written as UTF-8.
        durable: Wait until it is on the disk; without, it survives a crash of the process, not of the machine.

    Raises:
        OSError: The folder is missing, full or not writable; the old file is then untouched.
    """
    raw = data.encode() if isinstance(data, str) else data
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(raw)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
    if durable:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes renames in a folder last through a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
