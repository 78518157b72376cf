"""The write-ahead log of a run: length- and checksum-framed protobuf records in one file.

The payload of each record is a `LogRecord`; how records are framed, and what damage means, is in telemetry/framed.py. A
record torn by a crash can only be the last one: it is cut off when the log is opened.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

import structlog
from google.protobuf.message import DecodeError

from tersely.errors import LogCorrupt
from tersely.telemetry.disk import disk_errors
from tersely.telemetry.framed import HEADER, framed, read_framed
from tersely.testing.faultpoints import reach
from tersely.v1 import log_pb2

log = structlog.get_logger(__name__)


class WriteAheadLog:
    """Appends records, from any thread, and reads them back.

    Args:
        path: The log file; created with its folder when it is not there.
        guard: Called before each record is written and at `check`; raises where this process may no longer write.

    Raises:
        LogCorrupt: when a record other than the last is damaged.
    """

    def __init__(self, path: Path, guard: Callable[[], None] | None = None) -> None:
        self.path = path
        self._guard = guard
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._intact_bytes, torn = _scan(path)
        if torn:
            log.warning("torn last record of the write-ahead log cut off", path=str(path), torn_bytes=torn)
        # Unbuffered: what a failed write has left in a buffer would be written after all, at the next one.
        self._file = path.open("ab", buffering=0)
        self._file.truncate(self._intact_bytes)

    def __enter__(self) -> WriteAheadLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def check(self) -> None:
        """Raises what the guard raises."""
        if self._guard is not None:
            self._guard()

    def append(self, record: log_pb2.LogRecord, *, sync: bool) -> None:
        """Writes a record, stamped with the time; with `sync` it is on the disk when this returns.

        Without `sync` it survives a crash of the process, not of the machine.

        Raises:
            DiskFull: The log is as it was before.
        """
        with self._lock:
            self._append(record, sync=sync)

    def _append(self, record: log_pb2.LogRecord, *, sync: bool) -> None:
        self.check()
        record.time = time.time()
        payload = record.SerializeToString()
        data = framed(payload)
        if sync:
            reach("before_log_write")
            reach("inside_log_write", before=lambda: self._file.write(data[: len(data) // 2]))
        try:
            with disk_errors(f"the write-ahead log {self.path}"):
                self._write(data)
                if sync:
                    os.fsync(self._file.fileno())
        except BaseException:
            self._file.truncate(self._intact_bytes)
            raise
        self._intact_bytes += len(data)
        if sync:
            reach("after_log_write")

    def records(self) -> Iterator[log_pb2.LogRecord]:
        """All intact records, oldest first."""
        return read_records(self.path)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[self._file.write(rest) or 0 :]


def read_records(path: Path) -> Iterator[log_pb2.LogRecord]:
    """All intact records of a log, oldest first, without touching it: another process may be writing to it.

    Raises:
        LogCorrupt: when a record other than the last is damaged.
    """
    for number, payload in enumerate(read_framed(path), 1):
        try:
            record = log_pb2.LogRecord.FromString(payload)
        except DecodeError:
            raise LogCorrupt(
                f"Record {number} of the write-ahead log {path} is whole, but no record of a run.",
                "Restore the file from a backup; another program or version may have written to it.",
            ) from None
        yield record


def _scan(path: Path) -> tuple[int, int]:
    """(Bytes of intact records, bytes of a torn last one)."""
    if not path.exists():
        return 0, 0
    intact = sum(HEADER.size + len(payload) for payload in read_framed(path))
    return intact, path.stat().st_size - intact
