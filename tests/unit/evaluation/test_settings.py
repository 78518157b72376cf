"""Where an evaluation's settings come from, what files hold, and who looked at a test split."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tersely.config import Recipe
from tersely.data.records import Record
from tersely.errors import ConfigValue, EvaluationInvalid
from tersely.evaluation.files import dumps, is_test_split, log_final, read_evaluation, write_evaluation
from tersely.evaluation.settings import resolve_settings
from tersely.evaluation.table import comparison_lines, evaluation_lines
from tersely.testing.evaluations import completed, evaluation, prompt

RECIPE = Recipe.model_validate(
    {
        "data": {"source": "aclsum", "max_document_tokens": 220},
        "length": {"target_range": [20, 40]},
        "evaluation": {"prompts": 7, "seed": 5},
    }
)


def test_a_policy_is_asked_what_it_was_trained_for_unless_told_otherwise() -> None:
    own = resolve_settings(RECIPE, None, {})
    assert (own.split, own.limit, own.seed, own.length.targets, own.max_completion_tokens) == (
        "val",
        7,
        5,
        (20, 40),
        80,
    )
    told = resolve_settings(RECIPE, None, {"target_tokens": 10, "limit": 0, "seed": 9})
    assert (told.limit, told.seed, told.length.targets, told.max_completion_tokens) == (None, 9, (10, 10), 42)
    assert told.data.max_document_tokens == 220


def test_like_gives_another_model_the_very_same_prompts() -> None:
    own = resolve_settings(RECIPE, None, {})
    again = resolve_settings(None, json.loads(json.dumps(own.head())), {})
    assert again.head() == own.head()
    records = [Record(f"r{i}", "text", "") for i in range(20)]
    assert again.targets(records) == own.targets(records)
    assert len(set(own.targets(records))) > 3


def test_a_setting_out_of_range_in_an_earlier_file_is_named() -> None:
    with pytest.raises(ConfigValue):
        resolve_settings(None, {"prompt": "no place for anything"}, {})


def test_a_file_comes_back_as_it_was_written(tmp_path: Path) -> None:
    found = evaluation([prompt("a", completed("日本語 \u2028", 8), completed("x", 3))])
    write_evaluation(tmp_path / "new" / "e.json", found)
    assert read_evaluation(tmp_path / "new" / "e.json") == found


@pytest.mark.parametrize(
    "text",
    [None, "{", "[]", '{"kind": "evaluation"}', '{"kind": "report"}', b"\xff", '{"kind": "evaluation", "greedy": 1}'],
)
def test_what_is_no_evaluation_is_refused(tmp_path: Path, text: str | bytes | None) -> None:
    path = tmp_path / "e.json"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(EvaluationInvalid):
        read_evaluation(path)


def test_files_are_strict_json() -> None:
    with pytest.raises(ValueError, match="JSON"):
        dumps({"value": float("nan")})


def test_looks_at_a_test_split_are_counted_by_data_and_split(tmp_path: Path) -> None:
    looks = [log_final(tmp_path / "log", {"data": d, "split": "test", "model": "m"}) for d in ("a", "a", "b", "a")]
    assert looks == [1, 2, 1, 3]
    with (tmp_path / "log" / "final-evaluations.jsonl").open("a") as file:
        file.write('{"data": "a", "spl')
    assert [is_test_split(name) for name in ("test", "Test-clean", "val", "validation")] == [True, True, False, False]


def test_tables_hold_every_figure_and_mark_what_was_found() -> None:
    found = evaluation([prompt("a", completed("the", 8), completed("x", 3)), prompt("b", completed("x", 30))])
    text = "\n".join(evaluation_lines(found))
    assert "ROUGE-L" in text
    assert "within +-5 tokens" in text
    assert "0.50 (0.00 to 1.00)" not in text  # no intervals were asked for
    pair = {"a": "x", "b": "y", "metric": "rouge_l", "mode": "greedy", "mean_difference": 0.1, "ci95": [0.05, 0.15]}
    pair |= {"p": 0.001, "p_wilcoxon": None, "p_holm": 0.004, "n": 9, "minimum_detectable": 0.03}
    lines = comparison_lines({"pairs": [pair], "comparisons": 4, "alpha": 0.05, "remarks": ["careful"]})
    assert any("+0.100" in line and "+0.050 to +0.150" in line and "0.004*" in line for line in lines)
    assert lines[-1] == "careful"
