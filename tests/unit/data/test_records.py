from __future__ import annotations

import json
from pathlib import Path

import pytest

from tersely.config.schema import DataSection
from tersely.data.records import Record, load_records
from tersely.errors import DataEmpty, DataMissing, DataRecord

TINY = Path(__file__).parents[3] / "recipes" / "data" / "tiny"


def _write(folder: Path, *lines: object, name: str = "train.jsonl") -> DataSection:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / name).write_text(text, encoding="utf-8")
    return DataSection(source=str(folder))


def test_the_tiny_data_of_the_recipes_is_whole() -> None:
    data = DataSection(source=str(TINY))
    train, val = load_records(data, "train"), load_records(data, "val")
    assert (len(train), len(val)) == (24, 8)
    assert not {record.document for record in train} & {record.document for record in val}
    assert all(0 < len(record.summary) < len(record.document) for record in train + val)


def test_a_record_is_read_with_defaults_for_what_may_lack(tmp_path: Path) -> None:
    data = _write(tmp_path, {"id": "a", "document": "D1", "summary": "S1"}, "", "  ", {"document": "D2"}, {
        "id": 7, "document": "D3", "summary": None, "other": [1]
    })  # fmt: skip
    assert load_records(data, "train") == [
        Record("a", "D1", "S1"),
        Record("line-4", "D2", ""),
        Record("7", "D3", ""),
    ]


def test_fields_may_have_other_names(tmp_path: Path) -> None:
    _write(tmp_path, {"text": "D", "tldr": "S"})
    data = DataSection(source=str(tmp_path), document_field="text", summary_field="tldr")
    assert load_records(data, "train") == [Record("line-1", "D", "S")]


def test_windows_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(b'\xef\xbb\xbf{"document": "a"}\r\n\r\n{"document": "b"}\r\n')
    records = load_records(DataSection(source=str(tmp_path)), "train")
    assert [(record.id, record.document) for record in records] == [("line-1", "a"), ("line-3", "b")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"id": "x", "summary": "S"}, "no field 'document'"),
        ({"document": " \n"}, "'document' is empty"),
        ({"document": 5}, "'document' is not text"),
        ({"document": "D", "summary": ["S"]}, "'summary' is not text"),
        ({"document": "D", "id": True}, "'id' is neither"),
        ({"document": "D", "id": "a"}, "'a' was used in line 1"),
        ("[1, 2]", "not a JSON object"),
        ('{"document": "D"', "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"document": "\\ud800"}', "lone surrogate"),
    ],
)
def test_a_bad_record_is_named_by_file_and_line(tmp_path: Path, line: object, message: str) -> None:
    data = _write(tmp_path, {"id": "a", "document": "fine"}, "", line)
    with pytest.raises(DataRecord, match=message) as caught:
        load_records(data, "train")
    assert f"{tmp_path / 'train.jsonl'}:3" in caught.value.message
    assert caught.value.way_out


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(b'{"document": "a"}\n{"document": "\xff"}\n')
    with pytest.raises(DataRecord, match=r"train\.jsonl:2: the line is not UTF-8"):
        load_records(DataSection(source=str(tmp_path)), "train")


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_no_record_at_all_is_an_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataEmpty, match="'train'"):
        load_records(_write(tmp_path, text), "train")


def test_a_missing_source_or_split_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match="no data file or folder"):
        load_records(DataSection(source=str(tmp_path / "nowhere")), "train")
    with pytest.raises(DataMissing, match=r"no val\.jsonl .*found: train\.jsonl"):
        load_records(_write(tmp_path, {"document": "D"}), "val")


def test_one_file_serves_training_and_never_passes_for_held_out(tmp_path: Path) -> None:
    _write(tmp_path, {"document": "D"}, name="mine.jsonl")
    data = DataSection(source=str(tmp_path / "mine.jsonl"))
    assert len(load_records(data, "train")) == 1
    with pytest.raises(DataMissing, match=r"val\.jsonl"):
        load_records(data, "val")
    _write(tmp_path, {"document": "V"}, name="val.jsonl")
    assert [record.document for record in load_records(data, "val")] == ["V"]


def test_the_limit_holds_for_training_records_only(tmp_path: Path) -> None:
    _write(tmp_path, *({"document": f"D{i}"} for i in range(5)))
    _write(tmp_path, *({"document": f"V{i}"} for i in range(5)), name="val.jsonl")
    data = DataSection(source=str(tmp_path), max_records=2)
    assert [record.document for record in load_records(data, "train")] == ["D0", "D1"]
    assert len(load_records(data, "val")) == 5
