from __future__ import annotations

from pathlib import Path

import pytest

from tersely.errors import JudgeCache
from tersely.judge.cache import FILE, Answer, AnswerCache, answer_key

KEY = answer_key("m", "r", "d", "s", 0, 0.0)


def test_answers_outlive_the_process_and_the_first_stays(tmp_path: Path) -> None:
    cache = AnswerCache(tmp_path / "new" / "folder")
    assert cache.get(KEY) is None
    cache.put(KEY, Answer(0.75, "good \ud800", True), judge="m", rubric="clarity-1")
    cache.put(KEY, Answer(0.25, "other", False), judge="m", rubric="clarity-1")
    cache.close()
    assert AnswerCache(tmp_path / "new" / "folder").get(KEY) == Answer(0.75, "good ?", True)


def test_another_judge_rubric_text_round_or_temperature_is_another_answer() -> None:
    keys = {
        KEY,
        answer_key("n", "r", "d", "s", 0, 0.0),
        answer_key("m", "q", "d", "s", 0, 0.0),
        answer_key("m", "r", "e", "s", 0, 0.0),
        answer_key("m", "r", "d", "t", 0, 0.0),
        answer_key("m", "r", "ds", "", 0, 0.0),
        answer_key("m", "r", "d", "s", 1, 0.0),
        answer_key("m", "r", "d", "s", 0, 0.7),
        answer_key("m", "r", "d\ud800", "s", 0, 0.0),
    }
    assert len(keys) == 9


def test_a_damaged_file_is_named_with_its_way_out(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"no database" * 1000)
    with pytest.raises(JudgeCache, match=FILE) as caught:
        AnswerCache(tmp_path)
    assert "--cache" in caught.value.way_out


def test_a_file_in_place_of_the_folder_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(JudgeCache):
        AnswerCache(tmp_path / "cache")
