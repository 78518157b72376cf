"""Reads what is new in a file of lines that another process appends to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tersely.supervise.run_dir import parse_line


class LineTail:
    """Gives each complete line once; a line still being written waits for its newline.

    Args:
        path: The file; it need not exist yet.
        from_end: Leave out what is there already.
    """

    def __init__(self, path: Path, *, from_end: bool = False) -> None:
        self._path = path
        self._rest = b""
        self._offset = path.stat().st_size if from_end and path.exists() else 0

    def read_new(self) -> list[str]:
        """The lines that were added since the last call, without their ends."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        self._offset += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [line.decode(errors="replace") for line in lines]


class JsonlTail:
    """The same for JSON objects, one a line; a line that holds none is left out.

    Args:
        path: The file; it need not exist yet.
        from_end: Leave out what is there already.
    """

    def __init__(self, path: Path, *, from_end: bool = False) -> None:
        self._lines = LineTail(path, from_end=from_end)

    def read_new(self) -> list[dict[str, Any]]:
        """The objects that were added since the last call."""
        return [row for row in map(parse_line, self._lines.read_new()) if row is not None]
