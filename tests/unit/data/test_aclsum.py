from __future__ import annotations

import json
from pathlib import Path

import pytest

from tersely.config.schema import DataSection
from tersely.data import aclsum
from tersely.data.records import load_records
from tersely.errors import DataMissing, DataRecord, DownloadFailed

ROW = {
    "id": "P06-1112",
    "summary": {"challenge": "It is hard.", "approach": "They try.", "outcome": "It works."},
    "sentences": {"abstract": ["We try ( hard ) .", "It is up to 20 % better , is n't it ?"], "introduction": ["No ."]},
}
DOCUMENT = "We try (hard). It is up to 20% better, isn't it?"


@pytest.mark.parametrize(
    ("target", "reference"), [(32, "It works."), (47, "It works."), (48, "It is hard. They try. It works.")]
)
def test_the_reference_fits_the_target(target: int, reference: str) -> None:
    record = aclsum.parse_line(json.dumps(ROW), "train.jsonl:1")
    assert (record.id, record.document, record.reference(target)) == ("P06-1112", DOCUMENT, reference)


def test_sentences_may_be_a_string_that_holds_a_dict() -> None:
    row = {**ROW, "sentences": repr(ROW["sentences"])}
    assert aclsum.parse_line(json.dumps(row), "train.jsonl:1").document == DOCUMENT


@pytest.mark.parametrize("row", [{}, {**ROW, "sentences": "open('x')"}, {**ROW, "summary": {}}, [1]])
def test_another_layout_is_named_by_line(row: object) -> None:
    with pytest.raises(DataRecord, match=r"train\.jsonl:9"):
        aclsum.parse_line(json.dumps(row), "train.jsonl:9")


def test_quotes_of_tokenized_text_become_quotes() -> None:
    assert aclsum.detokenize("the `` best '' one [ 3 ] ; we 've seen") == 'the "best" one [3]; we\'ve seen'


def test_a_cached_copy_is_used_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "aclsum-0.1.2"
    folder.mkdir()
    (folder / "val.jsonl").write_text(json.dumps(ROW) + "\n")
    monkeypatch.setenv("TERSELY_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert [record.document for record in load_records(DataSection(), "val")] == [DOCUMENT]


def test_without_network_or_cache_the_download_fails_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERSELY_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(DownloadFailed, match=r"aclsum 0\.1\.2"):
        load_records(DataSection(), "train")
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []


def test_an_unknown_split_is_refused_before_any_download() -> None:
    with pytest.raises(DataMissing, match="'dev'"):
        aclsum.load_aclsum("dev")
