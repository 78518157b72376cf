from pathlib import Path

import pytest

from tersely.errors import LogCorrupt
from tersely.trainer.wal import WriteAheadLog
from tersely.v1 import log_pb2


def issued(number: int) -> log_pb2.LogRecord:
    return log_pb2.LogRecord(
        group_issued=log_pb2.GroupIssued(group_id=f"g{number}", issue_number=number, prompt_id=f"p{number}")
    )


def numbers(path: Path) -> list[int]:
    with WriteAheadLog(path) as wal:
        return [record.group_issued.issue_number for record in wal.records()]


def write(path: Path, count: int) -> None:
    with WriteAheadLog(path) as wal:
        for number in range(count):
            wal.append(issued(number), sync=number % 2 == 0)


def test_records_come_back_in_order_and_stamped(tmp_path: Path) -> None:
    path = tmp_path / "log" / "run.wal"
    write(path, 3)
    assert numbers(path) == [0, 1, 2]
    with WriteAheadLog(path) as wal:
        assert all(record.time > 1.7e9 for record in wal.records())


def test_a_record_torn_at_any_byte_is_cut_off_and_the_log_goes_on(tmp_path: Path) -> None:
    whole = tmp_path / "whole.wal"
    write(whole, 3)
    two = tmp_path / "two.wal"
    write(two, 2)
    data, intact = whole.read_bytes(), two.stat().st_size
    for cut in range(intact + 1, len(data)):
        path = tmp_path / "torn.wal"
        path.write_bytes(data[:cut])
        with WriteAheadLog(path) as wal:
            wal.append(issued(7), sync=True)
        assert numbers(path) == [0, 1, 7], f"cut at byte {cut}"


def test_a_wrong_byte_in_the_last_record_costs_only_that_record(tmp_path: Path) -> None:
    path = tmp_path / "run.wal"
    write(path, 3)
    data = bytearray(path.read_bytes())
    data[-1] ^= 0xFF
    path.write_bytes(data)
    assert numbers(path) == [0, 1]


def test_a_wrong_byte_before_the_last_record_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.wal"
    write(path, 3)
    data = bytearray(path.read_bytes())
    data[12] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(LogCorrupt, match="byte 0"):
        numbers(path)
