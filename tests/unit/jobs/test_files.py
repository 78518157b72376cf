"""Rows in: checked, cut into batches. Rows out: in order, whole, and gone on with after a crash."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from tersely.errors import (
    ConfigUnknownKey,
    ConfigValue,
    DataEmpty,
    DataMissing,
    DataRecord,
    NoWorkers,
    OutputBusy,
)
from tersely.jobs import BatchClient, BatchResult
from tersely.jobs.drive import drive, raised_by_worker
from tersely.jobs.folder import WorkFolder
from tersely.jobs.rows import Batch, check_rows, in_batches, read_rows


def accept(row: dict[str, Any], where: str) -> None:
    """Any row will do."""


@pytest.mark.parametrize(
    ("content", "place", "said"),
    [
        (b'{"id": 1}\n{"id": \n', ":2", "not JSON"),
        (b'{"id": 1}\n\n[1]\n', ":3", "not a JSON object"),
        (b'{"id": "\xff"}\n', ":1", "not UTF-8"),
        (b'{"id": 1}\n' + b'{"a": "' + b"x" * (16 << 20) + b'"}\n', ":2", "longer than 16 MiB"),
        (b"[" * 200_000 + b"\n", ":1", "not JSON"),
    ],
    ids=["half an object", "a list after a blank line", "bytes", "too long", "too deep"],
)
def test_a_bad_line_is_named_before_any_work(tmp_path: Path, content: bytes, place: str, said: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataRecord, match=said) as caught:
        check_rows(path, accept)
    assert f"{path}{place}:" in caught.value.message


def test_a_file_is_missing_or_empty_in_words(tmp_path: Path) -> None:
    with pytest.raises(DataMissing):
        check_rows(tmp_path / "none.jsonl", accept)
    (tmp_path / "blank.jsonl").write_text("\n \n")
    with pytest.raises(DataEmpty):
        check_rows(tmp_path / "blank.jsonl", accept)


def test_rows_keep_their_line_numbers_over_blank_lines_a_mark_and_no_newline_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"id": 1}\r\n\r\n{"id": 2}\n{"id": 3}')
    assert check_rows(path, accept).rows == 3
    assert list(read_rows(path, skip=1)) == [(3, {"id": 2}), (4, {"id": 3})]


def test_batches_hold_so_many_rows_or_bytes_and_a_large_row_is_alone() -> None:
    rows = [(line, {"t": "x" * size}) for line, size in enumerate([10, 10, 10, 500, 10], 1)]
    assert [len(batch.rows) for batch in in_batches(rows, 2)] == [2, 2, 1]
    cut = list(in_batches(rows, 100, most_bytes=100))
    assert [(b.number, b.first_line, b.last_line) for b in cut] == [(0, 1, 3), (1, 4, 4), (2, 5, 5)]
    assert list(in_batches([], 5)) == []


def test_what_was_written_is_gone_on_with_and_a_torn_row_is_cut(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    with WorkFolder(output, {"a": 1}) as folder:
        folder.begin("first")
        folder.append([{"id": 1}, {"id": "ü"}])
    with (folder.path / "rows.jsonl").open("ab") as file:
        file.write(b'{"id": 3, "re')
    with WorkFolder(output, {"a": 1}) as folder:
        assert (folder.rows, folder.resumed_rows, folder.old_task) == (2, 2, "first")
        assert [row["id"] for row in folder.written()] == [1, "ü"]
        assert not output.exists()
        folder.append([{"id": 3}])
        folder.finish()
    assert [json.loads(line)["id"] for line in output.read_text().splitlines()] == [1, "ü", 3]
    assert not folder.path.exists()


def test_another_task_to_the_same_file_starts_anew_and_says_so(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    with WorkFolder(output, {"a": 1}) as folder:
        folder.begin("first")
        folder.append([{"id": 1}])
    with WorkFolder(output, {"a": 2}) as folder:
        assert (folder.rows, folder.discarded_rows, folder.old_task) == (0, 1, "first")


def test_two_processes_cannot_write_one_output(tmp_path: Path) -> None:
    with (
        WorkFolder(tmp_path / "out.jsonl", {}),
        pytest.raises(OutputBusy),
        WorkFolder(tmp_path / "out.jsonl", {}),
    ):
        pytest.fail("both have it")


def test_a_refusal_before_the_first_row_leaves_no_folder(tmp_path: Path) -> None:
    folder = WorkFolder(tmp_path / "out.jsonl", {})
    folder.__enter__()
    folder.begin("t")
    error = ConfigValue("no", "no")
    folder.__exit__(ConfigValue, error, None)
    assert list(tmp_path.iterdir()) == []


class FakeClient:
    """Answers the youngest open batch first."""

    def __init__(self, answer: Callable[[dict[str, Any]], BatchResult | None]) -> None:
        self.open: list[tuple[int, dict[str, Any]]] = []
        self.most_open = 0
        self.workers = 1
        self._answer = answer

    def submit(self, batch: int, payload: dict[str, Any], label: str) -> None:
        self.open.append((batch, payload))
        self.most_open = max(self.most_open, len(self.open))

    def take(self) -> BatchResult | None:
        return self._answer({"batch": self.open[-1][0], **self.open.pop()[1]}) if self.workers else None

    def worker_count(self) -> int:
        return self.workers


def batches(count: int) -> Iterator[Batch]:
    return (Batch(n, [{"id": n}], n + 1, n + 1) for n in range(count))


def payload(batch: Batch) -> dict[str, Any]:
    return {"rows": batch.rows}


def echo(asked: dict[str, Any]) -> BatchResult:
    return BatchResult(asked["batch"], {"rows": asked["rows"]}, None, "w")


def test_results_in_any_order_are_written_in_order_within_the_window() -> None:
    client = FakeClient(echo)
    written: list[int] = []
    driven = drive(
        cast(BatchClient, client),
        batches(50),
        payload,
        lambda rows: written.extend(row["id"] for row in rows),
        stopping=threading.Event(),
        window=7,
    )
    assert written == list(range(50))
    assert (driven.complete, driven.batches, driven.by_worker) == (True, 50, {"w": 50})
    assert client.most_open == 7


def test_told_to_stop_it_leaves_off_between_batches() -> None:
    stopping = threading.Event()
    written: list[Any] = []

    def write(rows: Any) -> None:
        written.extend(rows)
        if len(written) == 3:
            stopping.set()

    driven = drive(cast(BatchClient, FakeClient(echo)), batches(50), payload, write, stopping=stopping, window=1)
    assert (driven.complete, len(written)) == (False, 3)


def test_without_any_worker_it_gives_up_after_its_patience() -> None:
    client = FakeClient(echo)
    client.workers = 0
    seconds = iter(range(0, 1000, 10))
    with pytest.raises(NoWorkers, match=r"No worker has been there for [78]0 s"):
        drive(
            cast(BatchClient, client),
            batches(1),
            payload,
            lambda rows: None,
            stopping=threading.Event(),
            clock=lambda: float(next(seconds)),
        )


def test_a_refusal_keeps_its_class_and_an_unknown_kind_is_still_an_error() -> None:
    refusal = {"kind": "config_unknown_key", "message": "m", "way_out": "w"}
    with pytest.raises(ConfigUnknownKey):
        drive(
            cast(BatchClient, FakeClient(lambda asked: BatchResult(asked["batch"], None, refusal, "w"))),
            batches(1),
            payload,
            lambda rows: None,
            stopping=threading.Event(),
        )
    assert raised_by_worker({**refusal, "kind": "of a later version"}).message == "m"


def test_an_answer_with_too_few_rows_is_no_answer() -> None:
    short = FakeClient(lambda asked: BatchResult(asked["batch"], {"rows": []}, None, "w"))
    with pytest.raises(TypeError, match="did not answer with 1 rows"):
        drive(cast(BatchClient, short), batches(1), payload, lambda rows: None, stopping=threading.Event())
