"""Files of rows: JSON lines that are checked as a whole before any work begins, and then read again in batches."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tersely.errors import DataEmpty, DataMissing, DataRecord

MOST_BATCH_BYTES = 1 << 20
MOST_ROW_BYTES = 16 << 20
Check = Callable[[dict[str, Any], str], None]
"""Called with a row and its place ("FILE:LINE"); raises DataRecord."""


@dataclass(frozen=True, slots=True)
class RowFile:
    """A checked file.

    Attributes:
        path: Where it is.
        rows: Rows in it; blank lines don't count.
        sha256: Of its bytes, hex.
    """

    path: Path
    rows: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one job.

    Attributes:
        number: From 0.
        rows: At least one.
        first_line: Line of the first row in the file, from 1.
        last_line: Line of the last.
    """

    number: int
    rows: list[dict[str, Any]]
    first_line: int
    last_line: int


def check_rows(path: Path, check: Check) -> RowFile:
    """Reads a file once, keeping nothing of it.

    Raises:
        DataMissing: It can't be read.
        DataEmpty: There is no row in it.
        DataRecord: A line is no JSON object, is longer than 16 MiB, or does not pass `check`; file and line are named.
    """
    rows = 0
    digest = hashlib.sha256()
    for number, line in _lines(path):
        digest.update(line)
        if line.strip():
            check(_parse(line, f"{path}:{number}"), f"{path}:{number}")
            rows += 1
    if not rows:
        raise DataEmpty(f"{path} holds no row.", "Put one JSON object on each line.")
    return RowFile(path, rows, digest.hexdigest())


def read_rows(path: Path, skip: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers and rows of a file, without the first `skip` rows; raises as `check_rows`."""
    for number, line in _lines(path):
        if not line.strip():
            continue
        if skip:
            skip -= 1
            continue
        yield number, _parse(line, f"{path}:{number}")


def in_batches(
    rows: Iterable[tuple[int, dict[str, Any]]], most_rows: int, most_bytes: int = MOST_BATCH_BYTES
) -> Iterator[Batch]:
    """Cuts rows into batches of at most so many rows and so many bytes of JSON; a larger row is a batch of its own."""
    batch: list[dict[str, Any]] = []
    size = number = first = last = 0
    for line, row in rows:
        weight = len(json.dumps(row, ensure_ascii=False).encode("utf-8"))
        if batch and (len(batch) == most_rows or size + weight > most_bytes):
            yield Batch(number, batch, first, last)
            number, batch, size = number + 1, [], 0
        if not batch:
            first = line
        batch.append(row)
        last, size = line, size + weight
    if batch:
        yield Batch(number, batch, first, last)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(MOST_ROW_BYTES + 1):
                number += 1
                if len(line) > MOST_ROW_BYTES:
                    raise DataRecord(f"{path}:{number}: the line is longer than 16 MiB.", "Cut the text, or split it.")
                yield number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
    except OSError as error:
        raise DataMissing(f"{path} can't be read: {error.strerror}.", "Give a file of JSON lines.") from None


def _parse(line: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        raise DataRecord(f"{where}: the line is not UTF-8.", "Save the file as UTF-8.") from None
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "too deep or too large"
        raise DataRecord(f"{where}: the line is not JSON ({reason}).", "Put one JSON object on each line.") from None
    if not isinstance(value, dict):
        raise DataRecord(f"{where}: the line is not a JSON object.", "Put one JSON object on each line.")
    if b"\\u" in line:  # the only way in which JSON in UTF-8 can hold half of a surrogate pair
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            raise DataRecord(f"{where}: the line holds half a character (a lone surrogate).", "Fix it.") from None
    return value
