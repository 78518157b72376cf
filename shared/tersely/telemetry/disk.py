"""A full disk as an error of ours, whoever finds it out."""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tersely.errors import DiskFull

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_FULL_IN_TEXT = re.compile(rf"\b(?:code: |os error )(?:{'|'.join(str(code) for code in sorted(_FULL))})\b")
_WAY_OUT = "Make room, or move the run directory to a larger disk; then go on with --resume."


def is_disk_full(error: BaseException) -> bool:
    """Whether an error says that disk, quota or file size limit is used up.

    Libraries in Rust (safetensors) give the error's number only in their text.
    """
    if isinstance(error, OSError):
        return error.errno in _FULL
    return type(error).__module__.startswith("safetensors") and bool(_FULL_IN_TEXT.search(str(error)))


@contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """Turns errors of a full disk into DiskFull; all others pass.

    Args:
        what: What was being written, for the message.
    """
    try:
        yield
    except Exception as error:
        if not is_disk_full(error):
            raise
        raise DiskFull(f"There is no room on the disk for {what}.", _WAY_OUT) from error


def need_room(folder: Path, size_bytes: int, what: str) -> None:
    """Raises DiskFull when a folder's disk has fewer than `size_bytes` free."""
    free = shutil.disk_usage(folder).free
    if free < size_bytes:
        raise DiskFull(
            f"{what} needs {size_bytes / 1e6:.1f} MB, but the disk of {folder} has {free / 1e6:.1f} MB left.", _WAY_OUT
        )
