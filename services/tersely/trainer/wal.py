"""The write-ahead log of a run: length- and checksum-framed protobuf records in one file.

Layout of a record: ``<u32 length><u32 crc32 of the payload><payload>``, little-endian; the payload is a `LogRecord`.
A record torn by a crash can only be the last one: it is cut off when the log is opened. Damage anywhere before is
`LogCorrupt`, because what follows could not be trusted. A record that seems to reach past the end is torn only if no
whole record stands behind it: else its length was damaged.
"""

from __future__ import annotations

import os
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

import structlog

from tersely.errors import LogCorrupt
from tersely.telemetry.disk import disk_errors
from tersely.testing.faultpoints import reach
from tersely.v1 import log_pb2

_HEADER = struct.Struct("<II")
_MAX_RECORD_BYTES = 1 << 30

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
        data = _HEADER.pack(len(payload), zlib.crc32(payload)) + payload
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
    for payload in _payloads(path):
        yield log_pb2.LogRecord.FromString(payload)


def _scan(path: Path) -> tuple[int, int]:
    """(Bytes of intact records, bytes of a torn last one)."""
    if not path.exists():
        return 0, 0
    intact = sum(_HEADER.size + len(payload) for payload in _payloads(path))
    return intact, path.stat().st_size - intact


def _payloads(path: Path) -> Iterator[bytes]:
    size = path.stat().st_size
    with path.open("rb") as file:
        offset = 0
        while offset < size:
            header = file.read(_HEADER.size)
            if len(header) < _HEADER.size:
                return
            length, checksum = _HEADER.unpack(header)
            end = offset + _HEADER.size + length
            # No record is empty: zeros are what some file systems leave where data was lost.
            framed = 0 < length <= _MAX_RECORD_BYTES and end <= size
            payload = file.read(length) if framed else b""
            if not framed or zlib.crc32(payload) != checksum:
                if _whole_record_in(path, offset + 1, size):
                    raise LogCorrupt(
                        f"The write-ahead log {path} is damaged at byte {offset}, before its last record.",
                        "Restore the file from a backup, or start a new run from the last checkpoint's weights.",
                    )
                return
            yield payload
            offset = end


def _whole_record_in(path: Path, start: int, size: int) -> bool:
    """Whether an intact record begins at any byte from `start` on."""
    with path.open("rb") as file:
        file.seek(start)
        rest = memoryview(file.read(size - start))
    for offset in range(len(rest) - _HEADER.size):
        length, checksum = _HEADER.unpack_from(rest, offset)
        begin = offset + _HEADER.size
        if 0 < length <= len(rest) - begin and zlib.crc32(rest[begin : begin + length]) == checksum:
            return True
    return False
