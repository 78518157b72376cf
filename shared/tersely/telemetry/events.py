"""The event log of a run, `events.jsonl`: every decision about a group and every turn of the run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tersely.telemetry.jsonl import JsonLines, read_json_lines


class EventLog(JsonLines):
    """Appends events; thread-safe, and safe beside other processes that append to the same file."""

    def write(self, kind: str, **fields: Any) -> None:
        """Appends one event.

        Args:
            kind: Name of the event, e.g. "group_trained".
            fields: What else to tell, as JSON values. `time` (Unix seconds) is added.

        Raises:
            OSError: The disk is full, or the log was closed.
        """
        self.append({"time": time.time(), "kind": kind, **fields})


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """Events of a run in the order written; torn lines are left out."""
    return (event for event in read_json_lines(path) if "kind" in event and "time" in event)
