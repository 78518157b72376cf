"""Records from a data set of the Hugging Face hub, by the package `datasets` (extra `hub`)."""

from __future__ import annotations

import importlib
import logging
from typing import Any

import structlog

from tersely.config.schema import DataSection
from tersely.data.jsonl import record_from
from tersely.data.records import Record
from tersely.errors import DataMissing, DataRecord, HubUnreachable, PackageMissing

_log = structlog.get_logger(__name__)

KNOWN_FIELDS = {"mlabonne/smoltldr": ("prompt", "completion")}
"""Document and summary field of data sets that name them otherwise; used while the recipe has the default names."""
_SPLIT_NAMES = {"val": "validation", "validation": "val"}


def fields_of(data: DataSection) -> tuple[str, str]:
    """Names of the document and the summary field."""
    given = (data.document_field, data.summary_field)
    defaults = (
        DataSection.model_fields["document_field"].default,
        DataSection.model_fields["summary_field"].default,
    )
    return KNOWN_FIELDS.get(data.source, given) if given == defaults else given


def load_hub(data: DataSection, split: str) -> list[Record]:
    """All records of a split; `val` and `validation` mean the same.

    Raises:
        PackageMissing: `datasets` is not installed.
        HubUnreachable: Not cached, and the hub can't be reached.
        DataMissing: No such data set or split.
        DataRecord: A record lacks a field or repeats an id.
    """
    splits = _load(data.source)
    name = split if split in splits else _SPLIT_NAMES.get(split, split)
    if name not in splits:
        raise DataMissing(
            f"The data set {data.source} has no split {split!r}.",
            f"Set data.train_split and data.eval_split to two of {', '.join(sorted(splits))}.",
        )
    document_field, summary_field = fields_of(data)
    records: list[Record] = []
    seen: set[str] = set()
    for number, fields in enumerate(splits[name]):
        where = f"{data.source}[{name}] record {number}"
        record = record_from(dict(fields), where, f"{name}-{number}", document_field, summary_field)
        if record.id in seen:
            raise DataRecord(f"{where}: the id {record.id!r} was used before.", "Use a copy with unique ids.")
        seen.add(record.id)
        records.append(record)
    return records


def _load(source: str) -> Any:
    try:
        datasets = importlib.import_module("datasets")
    except ImportError:
        raise PackageMissing(
            f"Reading the hub data set {source} needs the package datasets.", "Run `pip install 'tersely[hub]'`."
        ) from None
    datasets.disable_progress_bars()
    # Its retries without a network are said once, by our error.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    _log.info("looking for the data set at the hub", data=source)
    try:
        return datasets.load_dataset(source)
    # DatasetNotFoundError is a FileNotFoundError; offline and unreachable are ConnectionErrors.
    except FileNotFoundError as error:
        raise DataMissing(
            f"There is neither a folder {source} here nor a data set of that name at the hub ({_first_line(error)}).",
            "Check data.source; private data sets need `hf auth login`.",
        ) from None
    except OSError as error:
        raise HubUnreachable(
            f"The data set {source} is not cached here and the hub can't be reached ({type(error).__name__}).",
            "On a machine with network write each split as SPLIT.jsonl into a folder"
            f" (`datasets.load_dataset({source!r})[SPLIT].to_json(...)`), copy it here, set data.source to it, and"
            " data.document_field and data.summary_field to the names of its fields.",
        ) from None
    except (ValueError, RuntimeError) as error:
        raise DataMissing(f"The data set {source} can't be read: {_first_line(error)}.", "Check data.source.") from None


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
