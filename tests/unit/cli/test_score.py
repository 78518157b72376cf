"""`tersely score`: its options and what it says."""

from __future__ import annotations

from typing import Any

import pytest

from tersely.cli.score import in_words, parse_options
from tersely.errors import ConfigValue


def test_options_are_toml_values_and_else_text() -> None:
    assert parse_options(["rouge_l.measure=recall", "copy_rate.n=3", "copy_rate.flag=true", "x.path=/a=b"]) == {
        "rouge_l": {"measure": "recall"},
        "copy_rate": {"n": 3, "flag": True},
        "x": {"path": "/a=b"},
    }


@pytest.mark.parametrize("item", ["rouge_l", "rouge_l=1", "rouge_l.=1", ".n=1", "rouge_l.measure"])
def test_an_option_of_another_shape_is_refused(item: str) -> None:
    with pytest.raises(ConfigValue, match="can't be read"):
        parse_options([item])


def summary(**changes: Any) -> dict[str, Any]:
    figures = {"mean": 0.25, "least": 0.0, "most": 1.0, "scored": 2, "absent": 0, "reasons": {}}
    missing = figures | {"mean": None, "scored": 0, "absent": 2, "reasons": {"no reference summary": 2}}
    return {
        "output": "out.jsonl",
        "complete": True,
        "rows": 4,
        "rows_written": 4,
        "rows_resumed": 0,
        "rows_discarded": 0,
        "rows_without_reference": 0,
        "rewards": {"length": figures, "rouge_l": missing},
        "seconds": 2.0,
        "pairs_per_second": 2.0,
        "scorers": {"a": 1},
        "scorers_restarted": 0,
        "batches_repeated": 0,
    } | changes


def test_it_says_means_what_is_missing_and_where_it_is() -> None:
    assert in_words(summary()).splitlines() == [
        "length   mean 0.2500",
        "rouge_l  no value, 2 without (no reference summary)",
        "4 of 4 rows in 2.0 s, 2 pairs/s by 1 scorer",
        "written to out.jsonl",
    ]


def test_stopped_it_says_how_to_go_on_and_what_was_found() -> None:
    told = in_words(summary(complete=False, rows_written=3, rows_resumed=1, rows_discarded=7, rows_without_reference=2))
    assert "7 rows of an unfinished other task were thrown away" in told
    assert "went on after row 1" in told
    assert "2 rows have no reference" in told
    assert told.endswith("stopped: give the same command to go on")
