"""Evaluations on disk, and the log of who looked at a test split."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tersely.errors import EvaluationInvalid
from tersely.telemetry.atomic import write_atomic
from tersely.telemetry.jsonl import JsonLines, read_json_lines

FINAL_LOG = "final-evaluations.jsonl"


def read_evaluation(path: Path) -> dict[str, Any]:
    """What `tersely evaluate` wrote.

    Raises:
        EvaluationInvalid: There is no such file, or it holds something else.
    """
    way_out = "Make it with: tersely evaluate MODEL -o FILE.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise EvaluationInvalid(f"{path} can't be read: {error.strerror}.", way_out) from None
    except (ValueError, RecursionError):
        raise EvaluationInvalid(f"{path} is not JSON.", way_out) from None
    if not isinstance(found, dict) or found.get("kind") != "evaluation":
        raise EvaluationInvalid(f"{path} is JSON, but no evaluation.", way_out)
    arms = [found.get("greedy"), found.get("sampled"), *_values(found.get("baselines"))]
    if not all(_is_arm(arm) for arm in arms):
        raise EvaluationInvalid(f"{path} is an evaluation with parts missing.", way_out)
    return found


def write_evaluation(path: Path, evaluation: Mapping[str, Any]) -> None:
    """Writes the file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, dumps(evaluation))


def dumps(value: Mapping[str, Any]) -> str:
    """JSON as it is written and printed: strict (no NaN), readable in any script."""
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def is_test_split(split: str) -> bool:
    """Whether a split is one to look at last: `test`, also as a part of its name."""
    return "test" in split.lower()


def log_final(folder: Path, entry: Mapping[str, Any]) -> int:
    """Notes a look at a test split in a folder's log, before the look.

    Args:
        folder: Where the log is kept.
        entry: `data`, `split`, `model` and so on.

    Returns:
        How many looks at this split of this data the log has, this one included.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FINAL_LOG
    with JsonLines(path) as file:  # which keeps the entry apart from a line that a killed process left half written
        file.append({"time": time.time(), **entry})
    return sum(all(other.get(key) == entry.get(key) for key in ("data", "split")) for other in read_json_lines(path))


def _values(found: object) -> list[object]:
    return list(found.values()) if isinstance(found, dict) else [found]


def _is_arm(arm: object) -> bool:
    return (
        isinstance(arm, dict)
        and isinstance(arm.get("metrics"), dict)
        and isinstance(arm.get("examples"), list)
        and all(
            isinstance(example, dict)
            and isinstance(example.get("metrics"), dict)
            and {"id", "completion", "completion_tokens", "stopped", "target_tokens", "reference"} <= example.keys()
            for example in arm["examples"]
        )
    )
