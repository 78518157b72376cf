"""Small files that one process writes while others read them."""

from __future__ import annotations

import json
from pathlib import Path

import psutil

from tersely.telemetry.atomic import write_atomic


def write_json(path: Path, value: object) -> None:
    """Replaces `path` in one move: a reader sees the old or the new content, never a half."""
    write_atomic(path, json.dumps(value) + "\n", durable=False)


def pid_alive(pid: int) -> bool:
    """Whether a process of this machine runs; a zombie does not."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
