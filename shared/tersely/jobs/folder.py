"""The work folder of an output file, `OUT.work`: what is done so far, so that the same command goes on."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from filelock import FileLock, Timeout

from tersely.errors import DataMissing, DiskFull, JobError, OutputBusy, TerselyError
from tersely.telemetry.atomic import write_atomic


class WorkFolder:
    """Rows written so far to one output file, in input order; held by one process at a time.

    Use as a context manager. The output file itself appears only in `finish`, whole; until then one that was there
    before stays.

    Args:
        output: The output file; its folder must exist.
        fingerprint: All that makes this the same task as before: hash of the input, rewards, settings.

    Attributes:
        rows: Rows written so far, those of earlier processes included.
        resumed_rows: Rows found at the start.
        discarded_rows: Rows of an unfinished other task to the same file, which were thrown away.
        old_task: Task id that an earlier process left; None if there was none.
    """

    def __init__(self, output: Path, fingerprint: Mapping[str, Any]) -> None:
        self.output = output
        self.path = output.with_name(output.name + ".work")
        self.rows = self.resumed_rows = self.discarded_rows = 0
        self.old_task: str | None = None
        self._fingerprint = json.loads(json.dumps(fingerprint))
        self._part = self.path / "rows.jsonl"
        self._lock = FileLock(self.path / "lock")
        self._file: BinaryIO | None = None

    def __enter__(self) -> Self:
        with _disk(self.output):
            self.path.mkdir(exist_ok=True)
            try:
                self._lock.acquire(timeout=0)
            except Timeout:
                raise OutputBusy(
                    f"Another process is writing {self.output}: it holds {self.path}.",
                    "Wait for it or end it, or name another output file.",
                ) from None
            self._look_back()
            self._file = self._part.open("ab")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        if isinstance(value, TerselyError) and not isinstance(value, JobError) and not self.rows:
            # Refused before anything was done, and no log in there tells more.
            shutil.rmtree(self.path, ignore_errors=True)
        self._lock.release()

    def begin(self, task: str) -> None:
        """Notes which task goes on with it, for whoever comes after a crash."""
        with _disk(self.output):
            write_atomic(self.path / "state.json", json.dumps({"task": task, "fingerprint": self._fingerprint}))

    def written(self) -> Iterator[dict[str, Any]]:
        """The rows written so far."""
        with self._part.open("rb") as file:
            for line in file:
                yield json.loads(line)

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Adds the next rows; they survive the death of this process.

        Raises:
            DiskFull: There is no room for them.
        """
        if self._file is None:
            raise RuntimeError("the work folder is not open")
        data = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows).encode("utf-8")
        with _disk(self.output):
            self._file.write(data)
            self._file.flush()
        self.rows += len(rows)

    def finish(self) -> None:
        """Makes the rows the output file, and removes the folder."""
        if self._file is None:
            raise RuntimeError("the work folder is not open")
        with _disk(self.output):
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None
            os.replace(self._part, self.output)
        shutil.rmtree(self.path, ignore_errors=True)

    def _look_back(self) -> None:
        try:
            state = json.loads((self.path / "state.json").read_text(encoding="utf-8"))
            self.old_task, known = str(state["task"]), state["fingerprint"]
        except (OSError, ValueError, KeyError, TypeError):
            known = None
        found = _cut_to_whole_rows(self._part)
        if known == self._fingerprint:
            self.rows = self.resumed_rows = found
        else:
            self.discarded_rows = found
            self._part.unlink(missing_ok=True)


def _cut_to_whole_rows(part: Path) -> int:
    """Rows that were written whole; what was torn off after them by a crash is cut."""
    if not part.is_file():
        return 0
    rows = size = 0
    with part.open("r+b") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            rows, size = rows + 1, size + len(line)
        file.truncate(size)
    return rows


@contextmanager
def _disk(output: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(
                f"The disk has no room for {output}.", "Free some room; the same command goes on where it stopped."
            ) from None
        raise DataMissing(
            f"{output} can't be written: {error.strerror}.", "Name a file in a folder of yours."
        ) from None
