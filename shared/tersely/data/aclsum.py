"""ACLSum: abstracts of papers in computational linguistics with three human summaries each (wheel `aclsum`, MIT)."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

from tersely.data.records import Record
from tersely.errors import DataMissing, DataRecord
from tersely.models.cache import build_once, cache_folder
from tersely.models.wheel import PinnedWheel, extract_wheel

WHEEL = PinnedWheel(
    "aclsum", "0.1.2", "c75ffc48d3eabc5f37c68ea087943780a85950087957759e89746f21111f2213", megabytes=5.2
)
SPLITS = ("train", "val", "test")
ASPECTS = ("challenge", "approach", "outcome")
LONG_TARGET_TOKENS = 48
"""From this target on, the reference is all three summaries joined (~66 words); below it is the outcome (~22 words).
Where a recipe gives a range of targets, each prompt has the reference that fits its own."""


def aclsum_folder(cache_dir: Path | None = None) -> Path:
    """The cache folder with train.jsonl, val.jsonl and test.jsonl (100, 50 and 100 papers), fetched the first time.

    Raises:
        DownloadFailed: Not cached, and the wheel can't be fetched.
    """
    folder = cache_folder(cache_dir) / WHEEL.folder_name
    names = {f"aclsum/dataset/{split}.jsonl": f"{split}.jsonl" for split in SPLITS}
    return build_once(folder, lambda part: extract_wheel(WHEEL, names, part, folder))


def load_aclsum(split: str, cache_dir: Path | None = None) -> list[Record]:
    """Abstracts as documents; which reference serves depends on the length asked for (`Record.reference`).

    Raises:
        DataMissing: ACLSum has no such split.
        DownloadFailed: Not cached, and the wheel can't be fetched.
        DataRecord: A line does not have the layout of ACLSum 0.1.2.
    """
    if split not in SPLITS:
        raise DataMissing(f"aclsum has no split {split!r}.", f"Use one of {', '.join(SPLITS)}.")
    path = aclsum_folder(cache_dir) / f"{split}.jsonl"
    if not path.is_file():
        raise DataMissing(f"The cached data set lacks {path}.", f"Delete {path.parent}; it is fetched again.")
    lines = path.read_text(encoding="utf-8").split("\n")
    return [parse_line(line, f"{path}:{number}") for number, line in enumerate(lines, start=1) if line.strip()]


def parse_line(line: str, where: str) -> Record:
    """One line of the data set as a record.

    Raises:
        DataRecord: The line does not have the layout of ACLSum 0.1.2.
    """
    try:
        row = json.loads(line)
        sentences = row["sentences"]
        if isinstance(sentences, str):
            sentences = ast.literal_eval(sentences)
        document = " ".join(detokenize(sentence) for sentence in sentences["abstract"])
        summaries = [row["summary"][aspect].strip() for aspect in ASPECTS]
        return Record(str(row["id"]), document, " ".join(summaries), summaries[-1], LONG_TARGET_TOKENS)
    except (ValueError, KeyError, TypeError, AttributeError, SyntaxError) as error:
        raise DataRecord(
            f"{where}: not a record of ACLSum ({type(error).__name__}: {error}).",
            f"Delete {Path(where).parent}; it is fetched again.",
        ) from None


_NO_SPACE_BEFORE = re.compile(r"\s+([.,;:?!%)\]}]|n't\b|'(?:s|re|ve|ll|d|m)\b)")
_NO_SPACE_AFTER = re.compile(r"([(\[{])\s+")
_QUOTES = re.compile(r"``\s*(.*?)\s*''")


def detokenize(sentence: str) -> str:
    """Undo the spaces that a tokenizer put around punctuation: ``"up to 20 % ."`` becomes ``"up to 20%."``."""
    text = _QUOTES.sub(r'"\1"', sentence)
    return _NO_SPACE_AFTER.sub(r"\1", _NO_SPACE_BEFORE.sub(r"\1", text)).strip()
