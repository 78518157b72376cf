"""What `tersely score` does to rows before and after the scorers, and what a scorer does with a job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tersely.errors import ConfigValue, DataRecord, RewardUnknown
from tersely.jobs.rows import Batch
from tersely.scorer.jobs.prepare import Preparation, check_row, read_references
from tersely.scorer.jobs.tally import Tally
from tersely.scorer.jobs.tool import own_workers, run_score
from tersely.scorer.jobs.work import MOST_SCORERS_KEPT, ScoreHandler


def batch(*rows: dict[str, Any]) -> Batch:
    return Batch(0, list(rows), 1, len(rows))


class Words:
    def encode(self, text: str) -> list[int]:
        return list(range(len(text.split())))


def test_lengths_are_filled_in_where_a_row_does_not_say() -> None:
    row = {"id": 1, "completion": "one two three", "stopped": None, "secret": "stays here"}
    told = row | {"completion_tokens": 9, "target_tokens": 4}
    assert Preparation(None, 64, Words()).rows(batch(row, told)) == [
        {"id": 1, "completion": "one two three", "target_tokens": 64, "completion_tokens": 3},
        {"id": 1, "completion": "one two three", "target_tokens": 4, "completion_tokens": 9},
    ]


def test_references_are_joined_by_id_and_missing_ones_counted() -> None:
    preparation = Preparation({"1": "theirs"})
    rows = [{"id": 1, "completion": "a", "reference": "own"}, {"id": 2, "completion": "b", "reference": "own"}]
    assert [row["reference"] for row in preparation.rows(batch(*rows))] == ["theirs", "own"]
    assert preparation.without_reference == 1


def test_a_file_of_references_takes_summaries_too_and_refuses_an_id_twice(tmp_path: Path) -> None:
    path = tmp_path / "ref.jsonl"
    path.write_text('{"id": 1, "reference": "r"}\n{"id": "b", "summary": "s"}\n')
    assert read_references(path)[0] == {"1": "r", "b": "s"}
    path.write_text('{"id": 1, "reference": "r"}\n{"id": "1", "summary": "s"}\n')
    with pytest.raises(DataRecord, match=r"ref\.jsonl:2: the id '1' was used before"):
        read_references(path)
    path.write_text('{"id": 1, "text": "r"}\n')
    with pytest.raises(DataRecord, match=r"ref\.jsonl:1: there is no text in 'reference' or 'summary'"):
        read_references(path)


def test_a_row_without_a_completion_is_refused() -> None:
    with pytest.raises(DataRecord):
        check_row({"id": 1}, "f:1")


def test_a_job_is_answered_and_rewards_are_set_up_once() -> None:
    handler = ScoreHandler()
    job = {"rows": [{"id": 1, "completion": "a", "reference": "a"}], "rewards": ["rouge_l"], "options": {}}
    assert handler(job) == {"rows": [{"id": 1, "rewards": {"rouge_l": 1.0}}]}
    (first,) = handler._scorers.values()
    handler(job)
    assert list(handler._scorers.values()) == [first]
    for n in range(1, 6):
        handler({**job, "rewards": ["repetition"], "options": {"repetition": {"n": n}}})
    assert len(handler._scorers) == MOST_SCORERS_KEPT


@pytest.mark.parametrize(
    "payload", [{}, {"rows": []}, {"rows": [], "rewards": None}, {"rows": [], "rewards": ["x"], "options": [1]}]
)
def test_a_job_of_another_shape_is_refused_for_good(payload: dict[str, Any]) -> None:
    with pytest.raises(ConfigValue):
        ScoreHandler()(payload)


def test_the_tally_counts_values_and_reasons() -> None:
    tally = Tally(["a"])
    for value in (1.0, 3.0, None):
        tally.add({"rewards": {"a": value}, **({} if value else {"errors": {"a": "why"}})})
    assert tally.figures() == {
        "a": {"mean": 2.0, "least": 1.0, "most": 3.0, "scored": 2, "absent": 1, "reasons": {"why": 1}}
    }


def test_a_flood_of_reasons_is_summed_up() -> None:
    tally = Tally(["a"])
    for n in range(100):
        tally.add({"rewards": {"a": None}, "errors": {"a": f"reason {n}"}})
    assert len(tally.figures()["a"]["reasons"]) == 21
    assert tally.figures()["a"]["reasons"]["other reasons"] == 80


def test_scorers_are_started_only_where_there_is_work_or_nobody_else() -> None:
    assert own_workers(None, None, rows=10, batch_rows=256) == 1
    assert own_workers(None, "redis://h", rows=9999, batch_rows=1) == 0
    assert own_workers(3, "redis://h", rows=1, batch_rows=1) == 3
    with pytest.raises(ConfigValue, match="nobody to score"):
        own_workers(0, None, rows=1, batch_rows=1)


def test_what_cant_be_meant_is_refused_before_anything_is_started(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text('{"id": 1, "completion": "a"}\n')
    with pytest.raises(ConfigValue, match="read and written at once"):
        run_score(path, path, ["length"])
    with pytest.raises(RewardUnknown):
        run_score(path, tmp_path / "out.jsonl", ["lenght"])
    assert [child.name for child in tmp_path.iterdir()] == ["in.jsonl"]
