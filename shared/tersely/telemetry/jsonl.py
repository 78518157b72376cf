"""Append-only files of one JSON object a line, which several threads and processes may write."""

from __future__ import annotations

import errno
import json
import math
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self


class JsonLines:
    """Appends objects to a file, each by one write to a descriptor opened with O_APPEND, so that lines never mix.

    A line torn by an earlier crash is closed with a newline first. Numbers that JSON doesn't know (NaN, infinity)
    become null.

    Args:
        path: File to append to; made if missing, in a folder that exists.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._descriptor: int | None = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        size = os.fstat(self._descriptor).st_size
        if size and os.pread(self._descriptor, 1, size - 1) != b"\n":
            os.write(self._descriptor, b"\n")

    def append(self, item: Mapping[str, Any]) -> None:
        """Appends one object.

        Raises:
            OSError: The disk is full, or the file was closed.
        """
        line = (_dumps(item) + "\n").encode()
        with self._lock:
            if self._descriptor is None:
                raise OSError(f"{self.path} is closed.")
            written = os.write(self._descriptor, line)
        if written != len(line):
            raise OSError(errno.ENOSPC, f"Only {written} of {len(line)} bytes could be written", str(self.path))

    def close(self) -> None:
        """Closes the file; a second call does nothing."""
        with self._lock:
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Objects of a file in order; none if it does not exist. Torn lines (a crash, or a write going on) are left out."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        for line in file:
            try:
                item = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(item, dict):
                yield item


def _dumps(item: Mapping[str, Any]) -> str:
    try:
        return json.dumps(item, ensure_ascii=False, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(item), ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
