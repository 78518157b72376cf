"""The folder for things that are downloaded or made once, and how a thing gets into it whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import filelock


def cache_folder(given: Path | None = None) -> Path:
    """Where downloads live: `given`, else $TERSELY_CACHE, else ~/.cache/tersely. It may not exist yet."""
    if given is not None:
        return given.expanduser()
    return Path(os.environ.get("TERSELY_CACHE") or "~/.cache/tersely").expanduser()


def build_once(folder: Path, build: Callable[[Path], None]) -> Path:
    """Have `build` fill a folder, unless it is there already.

    `build` gets an empty folder beside the wanted one, which is renamed when `build` returns: nobody ever sees half of
    it. A file lock makes other processes wait for the first. What a killed process left behind is swept.

    Args:
        folder: The folder that is wanted, e.g. ``~/.cache/tersely/aclsum-0.1.2``.
        build: Fills an empty folder; whatever it raises passes through, and nothing is kept.

    Returns:
        `folder`.
    """
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{folder.name}.part-"
    with filelock.FileLock(folder.parent / f".{folder.name}.lock"):
        if folder.is_dir():
            return folder
        for stale in folder.parent.glob(f"{prefix}*"):
            shutil.rmtree(stale, ignore_errors=True)
        part = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
        try:
            build(part)
            part.chmod(0o755)
            part.rename(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return folder
