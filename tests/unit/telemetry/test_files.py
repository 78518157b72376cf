import json
import os
import stat
import threading
from pathlib import Path

import pytest

from tersely.telemetry.atomic import write_atomic
from tersely.telemetry.events import EventLog, read_events
from tersely.telemetry.samples import SampleLog, read_samples


def test_an_event_has_time_kind_and_fields(tmp_path: Path) -> None:
    with EventLog(tmp_path / "events.jsonl") as log:
        log.write("group_trained", group_id="9d", step=3)
    (event,) = read_events(tmp_path / "events.jsonl")
    assert event["kind"] == "group_trained"
    assert (event["group_id"], event["step"]) == ("9d", 3)
    assert event["time"] > 1_700_000_000


def test_lines_of_many_threads_and_two_logs_never_mix(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with EventLog(path) as one, EventLog(path) as two:

        def work(log: EventLog, name: int) -> None:
            for number in range(100):
                log.write("tick", name=name, number=number, text="ü\n" * 200)

        threads = [threading.Thread(target=work, args=(log, i)) for i, log in enumerate([one, two] * 3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    seen = {(event["name"], event["number"]) for event in read_events(path)}
    assert seen == {(name, number) for name in range(6) for number in range(100)}
    assert len(path.read_bytes().splitlines()) == 600


def test_a_torn_last_line_costs_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with EventLog(path) as log:
        log.write("first")
    with path.open("ab") as file:
        file.write(b'{"time": 1, "kind": "to')
    with EventLog(path) as log:
        log.write("second")
    assert [event["kind"] for event in read_events(path)] == ["first", "second"]


def test_numbers_that_json_lacks_become_null(tmp_path: Path) -> None:
    with SampleLog(tmp_path / "samples.jsonl") as log:
        log.write(reward=float("nan"), parts={"length": [float("inf"), 1.5]})
    (sample,) = read_samples(tmp_path / "samples.jsonl")
    assert sample["reward"] is None
    assert sample["parts"] == {"length": [None, 1.5]}
    json.loads((tmp_path / "samples.jsonl").read_text(), parse_constant=pytest.fail)


def test_reading_a_log_that_is_not_there_gives_nothing(tmp_path: Path) -> None:
    assert list(read_events(tmp_path / "none.jsonl")) == []


def test_writing_to_a_closed_log_is_an_error(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log.close()
    log.close()
    with pytest.raises(OSError, match="closed"):
        log.write("late")


def test_an_atomic_write_replaces_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    write_atomic(path, "a" * 100)
    write_atomic(path, b"\xc3\xbc")
    assert path.read_text(encoding="utf-8") == "ü"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert os.listdir(tmp_path) == ["status.json"]


def test_a_failed_atomic_write_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "status.json"
    write_atomic(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["status.json"]


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    texts = [letter * 50_000 for letter in "xy"]
    write_atomic(path, texts[0])

    def rewrite() -> None:
        for number in range(40):
            write_atomic(path, texts[number % 2])

    writer = threading.Thread(target=rewrite)
    writer.start()
    seen = set()
    while writer.is_alive():
        seen.add(path.read_text())
    writer.join()
    assert seen <= set(texts)
    assert seen
