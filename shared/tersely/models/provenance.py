"""`tersely.json`: what a model folder that tersely wrote says of itself, beside its model card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PROVENANCE_FILE = "tersely.json"


def read_provenance(folder: Path) -> dict[str, Any] | None:
    """What is known of a folder's training; None if tersely did not write it, or the file is damaged.

    Returns:
        `recipe` (as resolved for the run), `run_id`, `step`, `policy_version`, `weights_sha256`, `versions`, `files`
        (names of all that the export wrote).
    """
    try:
        found = json.loads((folder / PROVENANCE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and isinstance(found.get("recipe"), dict) else None
