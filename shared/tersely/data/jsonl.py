"""Records from JSON lines; every complaint names file and line."""

from __future__ import annotations

import json
from pathlib import Path

from tersely.data.records import Record
from tersely.errors import DataMissing, DataRecord


def read_jsonl(path: Path, document_field: str = "document", summary_field: str = "summary") -> list[Record]:
    """Read one JSON object a line; blank lines are skipped.

    `id` may be a string or a number; a record without one gets `line-N`. A missing summary is the empty string.

    Raises:
        DataMissing: The file can't be read.
        DataRecord: A line is not a JSON object, lacks the document, has a field of the wrong type, or repeats an id.
    """
    records: list[Record] = []
    seen: dict[str, int] = {}
    try:
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except OSError as error:
        raise DataMissing(
            f"{path} can't be read: {error.strerror}.", "Check data.source and its permissions."
        ) from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        record = record_from(_parse(line, where), where, f"line-{number}", document_field, summary_field)
        if record.id in seen:
            raise DataRecord(
                f"{where}: the id {record.id!r} was used in line {seen[record.id]} already.", "Make ids unique."
            )
        seen[record.id] = number
        records.append(record)
    return records


def record_from(
    fields: dict[str, object], where: str, default_id: str, document_field: str, summary_field: str
) -> Record:
    """Check one record.

    Args:
        fields: The record as it was read.
        where: File and line, for messages.
        default_id: Id of a record that has none.
        document_field: Name of the field with the source text.
        summary_field: Name of the field with the reference.

    Raises:
        DataRecord: The document is missing or blank, or a field has the wrong type.
    """
    if document_field not in fields:
        names = ", ".join(sorted(fields)[:8]) or "nothing"
        raise DataRecord(
            f"{where}: the record has no field {document_field!r} (it has: {names}).",
            "Add the field, or set data.document_field to the name that the source text has.",
        )
    document = _text(fields[document_field], where, document_field)
    if not document.strip():
        raise DataRecord(f"{where}: the field {document_field!r} is empty.", "Remove the record or give it a text.")
    summary = fields.get(summary_field)
    identity = fields.get("id")
    if identity is None:
        identity = default_id
    if isinstance(identity, bool) or not isinstance(identity, str | int) or identity == "":
        raise DataRecord(f"{where}: the field 'id' is neither text nor a whole number.", "Use a unique text as id.")
    text_id = _text(str(identity), where, "id")
    return Record(text_id, document, "" if summary is None else _text(summary, where, summary_field))


def _parse(line: bytes, where: str) -> dict[str, object]:
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        raise DataRecord(f"{where}: the line is not UTF-8.", "Save the file as UTF-8.") from None
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "too deep or too large"
        raise DataRecord(f"{where}: the line is not JSON ({reason}).", "Put one JSON object on each line.") from None
    if not isinstance(value, dict):
        raise DataRecord(f"{where}: the line is not a JSON object.", "Put one JSON object on each line.")
    return value


def _text(value: object, where: str, field: str) -> str:
    if not isinstance(value, str):
        raise DataRecord(f"{where}: the field {field!r} is not text.", "Make it a JSON string.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise DataRecord(
            f"{where}: the field {field!r} holds half a character (a lone surrogate).", "Fix it."
        ) from None
    return value
