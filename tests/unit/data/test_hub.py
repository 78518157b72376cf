from __future__ import annotations

import sys
import types
from typing import Any

import pytest

from tersely.config.schema import DataSection
from tersely.data.records import Record, load_records
from tersely.errors import DataMissing, DataRecord, HubUnreachable, PackageMissing


def _datasets_answers(monkeypatch: pytest.MonkeyPatch, answer: Any) -> None:
    def load_dataset(source: str) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    module = types.SimpleNamespace(load_dataset=load_dataset, disable_progress_bars=lambda: None)
    monkeypatch.setitem(sys.modules, "datasets", module)


def test_a_known_data_set_needs_no_field_names(monkeypatch: pytest.MonkeyPatch) -> None:
    _datasets_answers(monkeypatch, {"validation": [{"prompt": "P", "completion": "C"}]})
    records = load_records(DataSection(source="mlabonne/smoltldr"), "val")
    assert records == [Record("validation-0", "P", "C")]


def test_field_names_that_the_user_gave_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    _datasets_answers(monkeypatch, {"train": [{"id": "x", "prompt": "P", "mine": "M"}]})
    data = DataSection(source="mlabonne/smoltldr", document_field="mine")
    assert load_records(data, "train") == [Record("x", "M", "")]


def test_a_record_without_document_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    _datasets_answers(monkeypatch, {"train": [{"document": "D"}, {"text": "T"}]})
    with pytest.raises(DataRecord, match=r"owner/set\[train\] record 1.*'document'.*text"):
        load_records(DataSection(source="owner/set"), "train")


def test_a_missing_split_lists_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    _datasets_answers(monkeypatch, {"train": [], "test": []})
    with pytest.raises(DataMissing, match="'val'") as caught:
        load_records(DataSection(source="owner/set"), "val")
    assert "test, train" in caught.value.way_out


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (ConnectionError("offline"), HubUnreachable),
        (TimeoutError("slow"), HubUnreachable),
        (FileNotFoundError("Dataset 'owner/set' doesn't exist on the Hub"), DataMissing),
        (ValueError("Config name is missing."), DataMissing),
    ],
)
def test_faults_of_the_hub_have_their_own_errors(
    monkeypatch: pytest.MonkeyPatch, fault: Exception, error: type[Exception]
) -> None:
    _datasets_answers(monkeypatch, fault)
    with pytest.raises(error, match="owner/set"):
        load_records(DataSection(source="owner/set"), "train")


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(PackageMissing, match="datasets") as caught:
        load_records(DataSection(source="owner/set"), "train")
    assert "tersely[hub]" in caught.value.way_out
