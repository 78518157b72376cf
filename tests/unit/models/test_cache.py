from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from tersely.models.cache import build_once, cache_folder


def test_cache_folder_follows_the_argument_then_the_environment_then_the_home(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TERSELY_CACHE", str(tmp_path / "env"))
    assert cache_folder(tmp_path / "given") == tmp_path / "given"
    assert cache_folder() == tmp_path / "env"
    monkeypatch.delenv("TERSELY_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "tersely"


def test_a_build_that_fails_leaves_nothing_and_can_be_tried_again(tmp_path: Path) -> None:
    def fails(part: Path) -> None:
        (part / "half").write_text("x")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        build_once(tmp_path / "thing", fails)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []
    build_once(tmp_path / "thing", lambda part: (part / "whole").touch())
    assert (tmp_path / "thing" / "whole").exists()


def test_the_leftover_of_a_killed_build_is_swept(tmp_path: Path) -> None:
    (tmp_path / ".thing.part-dead").mkdir()
    (tmp_path / ".thing.part-dead" / "half").touch()
    build_once(tmp_path / "thing", lambda part: None)
    assert not (tmp_path / ".thing.part-dead").exists()


def test_two_at_once_build_one_time(tmp_path: Path) -> None:
    built: list[Path] = []

    def build(part: Path) -> None:
        time.sleep(0.1)
        built.append(part)

    threads = [threading.Thread(target=build_once, args=(tmp_path / "thing", build)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1
    assert (tmp_path / "thing").is_dir()
