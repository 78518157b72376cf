"""score_batch: order, absent values, and failures that stay where they happen."""

import math
from collections.abc import Sequence

from tersely.scorer.batch import inputs_of, score_batch
from tersely.scorer.rewards.base import RewardInput
from tersely.scorer.rewards.length import LengthReward
from tersely.scorer.rewards.rouge import RougeLReward
from tersely.v1 import common_pb2, group_pb2


class Scripted(LengthReward):
    """Gives `values` in turn per call's items by text; raises for the text "boom"."""

    name = "scripted"
    absent_reason = "told to be absent"

    def __init__(self, values: dict[str, float | None], drop: int = 0) -> None:
        self.values, self.drop = values, drop

    def score(self, batch: Sequence[RewardInput]) -> list[float | None]:
        if any(item.text == "boom" for item in batch):
            raise KeyError("boom")
        return [self.values.get(item.text, 1.0) for item in batch][self.drop :]


def item(text: str, key: str = "g") -> RewardInput:
    return RewardInput(text=text, token_count=3, target_tokens=2, reference="one two", group_key=key)


def test_values_come_per_item_in_the_order_of_the_rewards() -> None:
    rows = score_batch([item("one two"), item("zwei")], [RougeLReward(), LengthReward()])
    assert [[(v.name, v.value) for v in row] for row in rows] == [
        [("rouge_l", 1.0), ("length", -0.5)],
        [("rouge_l", 0.0), ("length", -0.5)],
    ]


def test_an_absent_value_has_a_reason_and_is_not_zero() -> None:
    (row,) = score_batch([RewardInput(text="x")], [RougeLReward(), LengthReward()])
    assert [v.HasField("value") for v in row] == [False, False]
    assert [v.absent_reason for v in row] == ["no reference summary", "no token count or no target length"]


def test_a_true_zero_is_present() -> None:
    (row,) = score_batch([item("zwei")], [RougeLReward()])
    assert row[0].HasField("value")
    assert row[0].value == 0.0


def test_a_reward_that_raises_loses_only_its_group_and_only_its_own_values() -> None:
    inputs = [item("a", "g1"), item("boom", "g2"), item("b", "g2"), item("c", "g3")]
    rows = score_batch(inputs, [Scripted({}), LengthReward()])
    assert [row[0].HasField("value") for row in rows] == [True, False, False, True]
    assert [row[0].absent_reason for row in rows[1:3]] == ["KeyError: 'boom'"] * 2
    assert all(row[1].value == -0.5 for row in rows)


def test_a_value_that_is_not_finite_is_absent() -> None:
    rows = score_batch([item("nan"), item("inf"), item("ok")], [Scripted({"nan": math.nan, "inf": math.inf})])
    assert [row[0].HasField("value") for row in rows] == [False, False, True]
    assert "not finite" in rows[0][0].absent_reason


def test_a_reward_that_gives_too_few_values_is_absent_for_the_group() -> None:
    rows = score_batch([item("a"), item("b")], [Scripted({}, drop=1)])
    assert [row[0].absent_reason for row in rows] == ["ValueError: gave 1 values for 2 completions"] * 2


def test_nothing_to_score_gives_nothing() -> None:
    assert score_batch([], [LengthReward()]) == []
    assert score_batch([item("a")], []) == [[]]


def test_inputs_of_a_group_carry_what_the_prompt_and_each_completion_say() -> None:
    group = group_pb2.CompletionGroup(
        prompt=group_pb2.PromptGroup(group_id="g", target_tokens=5, reference="ref", document="doc")
    )
    group.completions.add(token_ids=[1, 2], finish_reason=common_pb2.FINISH_REASON_STOP, text="a")
    group.completions.add(token_ids=[1, 2], finish_reason=common_pb2.FINISH_REASON_LENGTH, text="b")
    assert inputs_of(group) == [
        RewardInput("a", 1, True, 5, "ref", "doc", "g"),
        RewardInput("b", 2, False, 5, "ref", "doc", "g"),
    ]
