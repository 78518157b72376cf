"""Files of checksum-framed records, as the write-ahead log is one: read without touching them.

Layout of a record: ``<u32 length><u32 crc32 of the payload><payload>``, little-endian. A record torn by a crash can
only be the last one: it is left out. Damage anywhere before is `LogCorrupt`, because what follows could not be trusted.
A record that seems to reach past the end is torn only if no whole record stands behind it: else its length was damaged.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from tersely.errors import LogCorrupt

HEADER = struct.Struct("<II")
MAX_RECORD_BYTES = 1 << 30


def framed(payload: bytes) -> bytes:
    """A payload as it stands in the file."""
    return HEADER.pack(len(payload), zlib.crc32(payload)) + payload


def read_framed(path: Path) -> Iterator[bytes]:
    """All intact payloads, oldest first; another process may be writing to the file.

    Raises:
        LogCorrupt: when a record other than the last is damaged.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        offset = 0
        while offset < size:
            header = file.read(HEADER.size)
            if len(header) < HEADER.size:
                return
            length, checksum = HEADER.unpack(header)
            end = offset + HEADER.size + length
            # No record is empty: zeros are what some file systems leave where data was lost.
            whole = 0 < length <= MAX_RECORD_BYTES and end <= size
            payload = file.read(length) if whole else b""
            if not whole or zlib.crc32(payload) != checksum:
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
    for offset in range(len(rest) - HEADER.size):
        length, checksum = HEADER.unpack_from(rest, offset)
        begin = offset + HEADER.size
        if 0 < length <= len(rest) - begin and zlib.crc32(rest[begin : begin + length]) == checksum:
            return True
    return False
