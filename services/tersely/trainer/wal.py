"""The write-ahead log of a run: length- and checksum-framed protobuf records in one file.

Layout of a record: ``<u32 length><u32 crc32 of the payload><payload>``, little-endian; the payload is a `LogRecord`.
A record torn by a crash can only be the last one: it is cut off when the log is opened. Damage anywhere before is
`LogCorrupt`, because what follows could not be trusted.
"""

from __future__ import annotations

import os
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import structlog

from tersely.errors import LogCorrupt
from tersely.v1 import log_pb2

_HEADER = struct.Struct("<II")
_MAX_RECORD_BYTES = 1 << 30

log = structlog.get_logger(__name__)


class WriteAheadLog:
    """Appends records and reads them back.

    Args:
        path: The log file; created with its folder when it is not there.

    Raises:
        LogCorrupt: when a record other than the last is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._intact_bytes, torn = _scan(path)
        if torn:
            log.warning("torn last record of the write-ahead log cut off", path=str(path), torn_bytes=torn)
        self._file = path.open("ab")
        self._file.truncate(self._intact_bytes)

    def __enter__(self) -> WriteAheadLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def append(self, record: log_pb2.LogRecord, *, sync: bool) -> None:
        """Writes a record, stamped with the time; with `sync` it is on the disk when this returns.

        Without `sync` it survives a crash of the process, not of the machine.
        """
        record.time = time.time()
        payload = record.SerializeToString()
        self._file.write(_HEADER.pack(len(payload), zlib.crc32(payload)) + payload)
        self._file.flush()
        if sync:
            os.fsync(self._file.fileno())

    def records(self) -> Iterator[log_pb2.LogRecord]:
        """All intact records, oldest first."""
        for payload in _payloads(self.path, limit=None):
            yield log_pb2.LogRecord.FromString(payload)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _scan(path: Path) -> tuple[int, int]:
    """(Bytes of intact records, bytes of a torn last one)."""
    if not path.exists():
        return 0, 0
    size = path.stat().st_size
    intact = sum(_HEADER.size + len(payload) for payload in _payloads(path, limit=size))
    return intact, size - intact


def _payloads(path: Path, limit: int | None) -> Iterator[bytes]:
    size = path.stat().st_size if limit is None else limit
    with path.open("rb") as file:
        offset = 0
        while offset < size:
            header = file.read(_HEADER.size)
            if len(header) < _HEADER.size:
                return
            length, checksum = _HEADER.unpack(header)
            end = offset + _HEADER.size + length
            if length > _MAX_RECORD_BYTES or end > size:
                _torn_or_corrupt(path, offset, length, end, size)
                return
            payload = file.read(length)
            if zlib.crc32(payload) != checksum:
                if end == size:
                    return
                raise LogCorrupt(
                    f"The write-ahead log {path} is damaged at byte {offset}, before its last record.",
                    "Restore the file from a backup, or start a new run from the last checkpoint's weights.",
                )
            yield payload
            offset = end


def _torn_or_corrupt(path: Path, offset: int, length: int, end: int, size: int) -> None:
    if length > _MAX_RECORD_BYTES:
        raise LogCorrupt(
            f"The write-ahead log {path} is damaged at byte {offset}: a record of {length} bytes can't be.",
            "Restore the file from a backup, or start a new run from the last checkpoint's weights.",
        )
    log.debug("record reaches past the end of the log", offset=offset, record_end=end, log_bytes=size)
