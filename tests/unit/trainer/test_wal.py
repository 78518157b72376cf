import errno
from pathlib import Path

import pytest

from tersely.errors import DiskFull, LogCorrupt, TrainerSuperseded
from tersely.trainer.wal import WriteAheadLog, read_records
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


def test_a_log_cut_at_any_byte_keeps_its_whole_records_and_goes_on(tmp_path: Path) -> None:
    whole = tmp_path / "whole.wal"
    ends = [0]
    with WriteAheadLog(whole) as wal:
        for number in range(4):
            wal.append(issued(number), sync=False)
            ends.append(whole.stat().st_size)
    data = whole.read_bytes()
    for cut in range(len(data) + 1):
        path = tmp_path / "torn.wal"
        path.write_bytes(data[:cut])
        kept = sum(end <= cut for end in ends[1:])
        assert [r.group_issued.issue_number for r in read_records(path)] == list(range(kept)), f"cut at byte {cut}"
        assert path.stat().st_size == cut, "reading must not change the file"
        with WriteAheadLog(path) as wal:
            wal.append(issued(7), sync=True)
        assert numbers(path) == [*range(kept), 7], f"cut at byte {cut}"


@pytest.mark.parametrize("zeros", [1, 7, 8, 9, 16, 100])
def test_zeros_at_the_end_are_no_records(tmp_path: Path, zeros: int) -> None:
    path = tmp_path / "run.wal"
    write(path, 2)
    path.write_bytes(path.read_bytes() + bytes(zeros))
    with WriteAheadLog(path) as wal:
        wal.append(issued(2), sync=True)
    assert numbers(path) == [0, 1, 2]


def test_a_flipped_bit_anywhere_is_noticed(tmp_path: Path) -> None:
    """In the last record it looks like a torn one and costs that record; before, also in a length, it is refused."""
    path = tmp_path / "run.wal"
    with WriteAheadLog(path) as wal:
        for number in range(3):
            if number == 2:
                last = path.stat().st_size
            wal.append(issued(number), sync=False)
    data = path.read_bytes()
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        if bit // 8 >= last:
            assert [r.group_issued.issue_number for r in read_records(path)] == [0, 1], f"bit {bit}"
        else:
            with pytest.raises(LogCorrupt, match="damaged at byte"):
                numbers(path)
            assert path.read_bytes() == flipped, "a refused log must stay as it is"


@pytest.mark.parametrize("sync", [True, False])
def test_a_record_that_does_not_fit_on_the_disk_leaves_the_log_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sync: bool
) -> None:
    path = tmp_path / "run.wal"
    with WriteAheadLog(path) as wal:
        wal.append(issued(0), sync=True)
        file = wal._file
        room = [11, None]

        class Full:
            def write(self, data: memoryview) -> int:
                left = room.pop(0)
                if left is None:
                    raise OSError(errno.ENOSPC, "No space left on device")
                return file.write(data[:left]) or 0

            def __getattr__(self, name: str) -> object:
                return getattr(file, name)

        monkeypatch.setattr(wal, "_file", Full())
        with pytest.raises(DiskFull, match=r"run\.wal"):
            wal.append(issued(1), sync=sync)
        monkeypatch.setattr(wal, "_file", file)
        assert numbers(path) == [0]
        wal.append(issued(1), sync=True)
    assert numbers(path) == [0, 1]


def test_nothing_is_written_once_the_guard_says_no(tmp_path: Path) -> None:
    path = tmp_path / "run.wal"
    allowed = [True]

    def guard() -> None:
        if not allowed[0]:
            raise TrainerSuperseded("A newer one is at work.")

    with WriteAheadLog(path, guard) as wal:
        wal.append(issued(0), sync=True)
        allowed[0] = False
        with pytest.raises(TrainerSuperseded):
            wal.append(issued(1), sync=False)
        with pytest.raises(TrainerSuperseded):
            wal.check()
    assert numbers(path) == [0]
