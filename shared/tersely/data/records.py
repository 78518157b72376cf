"""Where records come from: a JSONL file or folder, `aclsum`, or a hub data set."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tersely.config.schema import DataSection
from tersely.errors import DataEmpty, DataMissing

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True, slots=True)
class Record:
    """One document with its reference, e.g. ``Record("P06-1112", "In this paper, ...", "They propose ...")``.

    Attributes:
        id: Unique in its split.
        document: Source text, never blank.
        summary: Reference summary; empty when there is none.
        short_summary: A shorter one, for targets below `short_below` tokens.
        short_below: See there; 0: `summary` serves every target.
    """

    id: str
    document: str
    summary: str
    short_summary: str = ""
    short_below: int = 0

    def reference(self, target_tokens: int) -> str:
        """The reference that fits a length."""
        return self.short_summary if target_tokens < self.short_below else self.summary


def load_records(data: DataSection, split: str) -> list[Record]:
    """All records of a split, in the order of the source; `data.max_records` limits the training split.

    Args:
        data: Source and names of the fields.
        split: E.g. `train`. A source that is one file serves the training split; another split is then read from
            `{split}.jsonl` beside it.

    Raises:
        DataMissing: No such file, split or data set.
        DataEmpty: The split holds no record.
        DataRecord: A record lacks a field, is not JSON, or repeats an id.
        DownloadFailed: `aclsum` is not cached and can't be fetched.
        HubUnreachable: The hub data set is not cached and the hub can't be reached.
        PackageMissing: A hub data set without the package `datasets`.
    """
    records = _read(data, split)
    if not records:
        raise DataEmpty(
            f"The split {split!r} of {data.source} holds no record.",
            'Give it at least one line like {"id": "1", "document": "...", "summary": "..."}.',
        )
    return records[: data.max_records] if split == data.train_split else records


def _read(data: DataSection, split: str) -> list[Record]:
    if data.source == "aclsum":
        from tersely.data.aclsum import load_aclsum

        return load_aclsum(split)
    from tersely.data.jsonl import read_jsonl

    try:
        path = Path(data.source).expanduser()
    except RuntimeError as error:  # ~SOMEBODY who is not known here
        raise DataMissing(f"There is no data {data.source!r}: {error}", "Write the path in full.") from None
    if path.is_dir():
        return read_jsonl(_split_file(path, data, split), data.document_field, data.summary_field)
    if path.is_file():
        own = split == data.train_split or split == path.stem
        file = path if own else _split_file(path.parent, data, split)
        return read_jsonl(file, data.document_field, data.summary_field)
    if not data.source.startswith((".", "/", "~")) and _HUB_ID.fullmatch(data.source):
        from tersely.data.hub import load_hub

        return load_hub(data, split)
    raise DataMissing(
        f"There is no data file or folder {data.source}.",
        "Set data.source to a JSONL file, a folder with train.jsonl and val.jsonl, a hub id (owner/name), or aclsum.",
    )


def _split_file(folder: Path, data: DataSection, split: str) -> Path:
    path = folder / f"{split}.jsonl"
    if not path.is_file():
        found = ", ".join(sorted(file.name for file in folder.glob("*.jsonl"))) or "no .jsonl file"
        raise DataMissing(
            f"There is no {path.name} in {folder} (found: {found}).",
            "Add the file, or name the split by data.train_split and data.eval_split; without held-out data set"
            " evaluation.prompts = 0.",
        )
    return path
