from __future__ import annotations

from pathlib import Path

import pytest

from tersely.testing.modules import load_module

COUNTS = """
from __future__ import annotations
from dataclasses import dataclass
@dataclass
class Point:
    x: int
"""


def test_a_file_is_run_once_and_its_dataclasses_work(tmp_path: Path) -> None:
    (tmp_path / "shapes.py").write_text(COUNTS)
    first = load_module(tmp_path / "shapes.py")
    assert first.Point(2).x == 2
    assert load_module(tmp_path / "." / "shapes.py") is first


def test_files_of_one_name_in_two_folders_are_two_modules(tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "same.py").write_text(f"number = {number}")
    assert [load_module(tmp_path / str(number) / "same.py").number for number in (1, 2)] == [1, 2]


def test_a_file_that_fails_is_run_again_the_next_time(tmp_path: Path) -> None:
    file = tmp_path / "broken.py"
    file.write_text("1 / 0")
    with pytest.raises(ZeroDivisionError):
        load_module(file)
    file.write_text("whole = True")
    assert load_module(file).whole
