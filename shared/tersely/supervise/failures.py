"""How a child tells its supervisor which error ended it: a small JSON file named by the environment."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tersely.errors import TerselyError, concrete_errors
from tersely.supervise.files import write_json

ERROR_FILE_ENV = "TERSELY_ERROR_FILE"

# A restart cures none of these: the recipe, the data, the model, the port, the run directory, a missing package, the
# judge's cache, the identity of this machine. A stall that was given up is to be seen by who asked for that.
FATAL_EXIT_CODES = frozenset({*range(10, 34), 50, 52, *range(60, 69), 71, 80, 81, 92, 104, *range(107, 110), 114})


def report_failure(error: TerselyError) -> None:
    """In a child: leaves the error where the supervisor looks for it; does nothing without a supervisor."""
    path = os.environ.get(ERROR_FILE_ENV)
    if path:
        write_json(Path(path), {"kind": error.kind, "message": error.message, "way_out": error.way_out})


def read_failure(path: Path, exit_code: int) -> TerselyError | None:
    """The error that a child with this exit code left at `path`; None if it left none that belongs to the code."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    for cls in concrete_errors():
        if cls.kind == found.get("kind") and cls.exit_code == exit_code:
            return cls(str(found.get("message", "")), str(found.get("way_out", "")))
    return None
