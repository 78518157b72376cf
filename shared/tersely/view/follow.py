"""Reads what is new in a JSONL file that another process appends to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tersely.supervise.run_dir import parse_line


class JsonlTail:
    """Gives each complete line once; a line still being written waits for its newline.

    Args:
        path: The file; it need not exist yet.
        from_end: Leave out what is there already.
    """

    def __init__(self, path: Path, *, from_end: bool = False) -> None:
        self._path = path
        self._rest = b""
        self._offset = path.stat().st_size if from_end and path.exists() else 0

    def read_new(self) -> list[dict[str, Any]]:
        """The objects that were added since the last call."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        self._offset += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [row for row in (parse_line(line.decode(errors="replace")) for line in lines) if row is not None]
