"""Every completion of a run, `samples.jsonl`, for people to read."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tersely.telemetry.jsonl import JsonLines, read_json_lines


class SampleLog(JsonLines):
    """Appends samples; thread-safe."""

    def write(self, **fields: Any) -> None:
        """Appends one sample.

        Args:
            fields: What to tell of it, as JSON values. `time` (Unix seconds) is added.

        Raises:
            OSError: The disk is full, or the log was closed.
        """
        self.append({"time": time.time(), **fields})


def read_samples(path: Path) -> Iterator[dict[str, Any]]:
    """Samples of a run in the order written; torn lines are left out."""
    return read_json_lines(path)
