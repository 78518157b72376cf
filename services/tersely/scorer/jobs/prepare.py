"""Rows on their way to the scorers: references joined by id, lengths counted with the policy's tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from tersely.errors import DataRecord
from tersely.jobs.rows import Batch, RowFile, check_rows
from tersely.models.locate import locate_model
from tersely.models.tokenizer import PolicyTokenizer
from tersely.scorer.rows import row_input

FIELDS = ("id", "completion", "reference", "document", "target_tokens", "completion_tokens", "stopped", "group")
"""What the scorers get of a row; other fields stay here."""


class Encoder(Protocol):
    """Counts tokens."""

    def encode(self, text: str) -> list[int]:
        """Ids of plain text."""


class Preparation:
    """Completes rows before they are scored.

    Args:
        references: Reference summaries by id (of `--against`); they go before a row's own.
        target_tokens: Length wanted of rows that don't say; none: those have no target.
        tokenizer: Counts the tokens of rows that don't say how long they are; none: those have no length.

    Attributes:
        without_reference: Rows to whose id `references` had nothing.
    """

    def __init__(
        self,
        references: Mapping[str, str] | None = None,
        target_tokens: int | None = None,
        tokenizer: Encoder | None = None,
    ) -> None:
        self.without_reference = 0
        self._references = references
        self._target_tokens = target_tokens
        self._tokenizer = tokenizer

    def rows(self, batch: Batch) -> list[dict[str, Any]]:
        """The rows of a batch, completed; the batch itself stays as it is."""
        return [self._row(row) for row in batch.rows]

    def _row(self, row: Mapping[str, Any]) -> dict[str, Any]:
        made = {name: row[name] for name in FIELDS if row.get(name) is not None}
        if self._references is not None:
            reference = self._references.get(str(row["id"]))
            if reference is None:
                self.without_reference += 1
            else:
                made["reference"] = reference
        if self._target_tokens is not None:
            made.setdefault("target_tokens", self._target_tokens)
        if self._tokenizer is not None and "completion_tokens" not in made:
            made["completion_tokens"] = len(self._tokenizer.encode(made["completion"]))
        return made


def check_row(row: dict[str, Any], where: str) -> None:
    """Refuses a row that can't be scored; raises DataRecord."""
    row_input(row, "", where)


def read_references(path: Path) -> tuple[dict[str, str], RowFile]:
    """Reference summaries by id: the field `reference`, or `summary` where there is none.

    Raises:
        DataMissing, DataEmpty: The file can't be read or holds nothing.
        DataRecord: A line has no id or no reference, or repeats an id.
    """
    references: dict[str, str] = {}

    def note(row: dict[str, Any], where: str) -> None:
        identity, text = row.get("id"), row.get("reference", row.get("summary"))
        if isinstance(identity, bool) or not isinstance(identity, str | int) or identity == "":
            raise DataRecord(f"{where}: the field 'id' is neither text nor a whole number.", "Give each row an id.")
        if not isinstance(text, str):
            raise DataRecord(f"{where}: there is no text in 'reference' or 'summary'.", "Add the reference summary.")
        if str(identity) in references:
            raise DataRecord(f"{where}: the id {identity!r} was used before.", "Make the ids of references unique.")
        references[str(identity)] = text

    checked = check_rows(path, note)
    return references, checked


def load_tokenizer(name: str | None) -> PolicyTokenizer | None:
    """The tokenizer of a model folder or of a known model; raises as `locate_model` and `PolicyTokenizer`."""
    return None if name is None else PolicyTokenizer.from_folder(locate_model(name))
