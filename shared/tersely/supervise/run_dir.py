"""What a run directory holds, as far as the supervisor cares; its names are the trainer's.

run.json, status.json, events.jsonl, report.json, log/, checkpoints/ are written by the trainer; logs/, processes.json,
report.html and valkey/ by `tersely up`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tersely.errors import RunDirMissing, RunDirNotEmpty


@dataclass(frozen=True, slots=True)
class RunDir:
    """Paths in a run directory."""

    path: Path

    @property
    def logs(self) -> Path:
        """Folder with the services' output."""
        return self.path / "logs"

    @property
    def valkey(self) -> Path:
        """Folder of the embedded server."""
        return self.path / "valkey"

    @property
    def run(self) -> Path:
        """Who trains and where it listens."""
        return self.path / "run.json"

    @property
    def status(self) -> Path:
        """State of the run, rewritten every second."""
        return self.path / "status.json"

    @property
    def events(self) -> Path:
        """Event log, one JSON object a line."""
        return self.path / "events.jsonl"

    @property
    def samples(self) -> Path:
        """Every completion, one JSON object a line."""
        return self.path / "samples.jsonl"

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.path / "recipe.json"

    @property
    def report(self) -> Path:
        """Figures of the finished run."""
        return self.path / "report.json"

    @property
    def report_html(self) -> Path:
        """The same as a page."""
        return self.path / "report.html"

    @property
    def processes(self) -> Path:
        """Children of `tersely up`."""
        return self.path / "processes.json"

    def holds_run(self) -> bool:
        """Whether a trainer has left anything here that a new run would mix with."""
        folders = (self.path / "log", self.path / "checkpoints")
        return self.report.exists() or any(folder.is_dir() and any(folder.iterdir()) for folder in folders)

    def check_for_start(self, *, resume: bool) -> None:
        """Refuses a new run over an old one, and going on with a run that is not there.

        Raises:
            RunDirNotEmpty, RunDirMissing.
        """
        if resume and not self.holds_run():
            raise RunDirMissing(f"{self.path} holds no run to go on with.", "Check --run-dir, or leave --resume out.")
        if not resume and (self.holds_run() or (self.path.exists() and not self.path.is_dir())):
            raise RunDirNotEmpty(f"{self.path} already holds a run.", "Give another --run-dir, or go on with --resume.")

    def check_exists(self) -> None:
        """Raises RunDirMissing where no run was ever started."""
        if not any(file.exists() for file in (self.status, self.run, self.processes, self.report, self.events)):
            raise RunDirMissing(f"There is no run in {self.path}.", "Check --run-dir; `tersely runs` lists the runs.")


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None when there is none, or it is being written."""
    value = read_json_value(path)
    return value if isinstance(value, dict) else None


def read_json_value(path: Path) -> object:
    """Whatever a JSON file holds; None when it is absent or no JSON."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return None


def parse_line(line: str) -> dict[str, Any] | None:
    """One JSON object, or None."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
