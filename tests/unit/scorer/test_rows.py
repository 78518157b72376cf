"""Rows of JSON: what is taken, what is refused, what comes out."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tersely.errors import ConfigUnknownKey, ConfigValue, DataRecord, RewardUnknown
from tersely.scorer.rows import RowScorer, row_input, score_rows


def test_rows_come_back_in_order_with_reasons_for_what_has_no_value() -> None:
    rows = [
        {"id": "b", "completion": "the cat", "reference": "the cat", "completion_tokens": 3, "target_tokens": 6},
        {"id": 7, "completion": "", "reference": None},
    ]
    assert score_rows(rows, ["length", "rouge_l"]) == [
        {"id": "b", "rewards": {"length": -0.5, "rouge_l": 1.0}},
        {
            "id": 7,
            "rewards": {"length": None, "rouge_l": None},
            "errors": {"length": "no token count or no target length", "rouge_l": "no reference summary"},
        },
    ]


def test_options_reach_the_rewards_and_are_checked() -> None:
    rows = [{"id": 1, "completion": "x", "completion_tokens": 3, "target_tokens": 5}]
    assert score_rows(rows, ["length"], options={"length": {"scale": "raw"}})[0]["rewards"] == {"length": -2.0}
    with pytest.raises(ConfigUnknownKey):
        score_rows(rows, ["length"], options={"length": {"scal": "raw"}})
    with pytest.raises(ConfigValue, match="options for bleu, which is not among"):
        score_rows(rows, ["length"], options={"bleu": {}})


@pytest.mark.parametrize(
    ("rewards", "kind", "said"),
    [
        ([], ConfigValue, "No reward is named"),
        (["length", "length"], ConfigValue, "length is named twice"),
        (["lenght"], RewardUnknown, "lenght"),
    ],
)
def test_a_list_of_rewards_that_cant_be_meant_is_refused(rewards: list[str], kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said):
        RowScorer(rewards)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"id": None}, "'id'"),
        ({"id": True}, "'id'"),
        ({"id": ""}, "'id'"),
        ({"completion": None}, "no field 'completion'"),
        ({"completion": ["a"]}, "'completion' is not text"),
        ({"reference": 3}, "'reference' is not text"),
        ({"document": "\ud800"}, "lone surrogate"),
        ({"target_tokens": -1}, "'target_tokens'"),
        ({"completion_tokens": 2.5}, "'completion_tokens'"),
        ({"completion_tokens": True}, "'completion_tokens'"),
        ({"stopped": "yes"}, "'stopped'"),
    ],
)
def test_a_wrong_field_is_named_with_its_place(change: dict[str, Any], said: str) -> None:
    row = {"id": "a", "completion": "x"} | change
    with pytest.raises(DataRecord, match=said) as caught:
        row_input(row, "", "f.jsonl:3")
    assert caught.value.message.startswith("f.jsonl:3: ")


def test_rows_of_one_group_share_a_key_only_where_they_share_the_prompt() -> None:
    from tersely.scorer.rows import _group_keys

    def row(group: object, reference: str) -> dict[str, Any]:
        return {"id": 1, "completion": "x", "group": group, "reference": reference}

    a, b, c, d, e = _group_keys([row("g", "r"), row("g", "r"), row("g", "s"), row(None, "r"), row(None, "r")])
    assert a == b
    assert len({a, c, d, e}) == 4


def test_what_comes_out_is_json_without_infinities() -> None:
    (row,) = score_rows([{"id": 1, "completion": "🙂 汉字"}], ["bleu", "chrf", "repetition", "copy_rate"])
    json.dumps(row, allow_nan=False)
