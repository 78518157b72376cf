"""Figures of a batch: diversity of its texts, parts of its rewards, and what goes with what."""

from __future__ import annotations

import math
import random

import pytest

from tersely.trainer.reward_figures import deviation, reward_correlation, reward_parts
from tersely.trainer.samples import batch_figures
from tersely.trainer.text_figures import DISTINCT_WORDS, commonest_opening, text_figures
from tersely.v1 import common_pb2, group_pb2


def words(count: int, vocabulary: int, seed: int) -> str:
    draw = random.Random(seed)
    return " ".join(f"w{draw.randrange(vocabulary)}" for _ in range(count))


def test_distinct_is_the_share_of_different_ngrams() -> None:
    figures = text_figures([["a b a b"], ["c d"]])
    assert figures["distinct_1"] == pytest.approx(4 / 6)
    assert figures["distinct_2"] == pytest.approx(3 / 4)  # ab ba ab, cd: no pair across completions


def test_case_and_punctuation_do_not_make_words_differ() -> None:
    assert text_figures([["The end. the END!"]])["distinct_1"] == pytest.approx(2 / 4)


def test_a_larger_batch_of_the_same_kind_has_about_the_same_distinct() -> None:
    small = text_figures([[words(50, 400, 10 * p + i) for i in range(8)] for p in range(4)])
    large = text_figures([[words(50, 400, 10 * p + i) for i in range(8)] for p in range(40)])
    assert DISTINCT_WORDS < 4 * 8 * 50
    assert large["distinct_1"] == pytest.approx(small["distinct_1"], abs=0.02)
    assert large["distinct_2"] == pytest.approx(small["distinct_2"], abs=0.02)


def test_overlap_is_with_other_prompts_only() -> None:
    same_prompt = text_figures([["a b c d"] * 3, ["e f g h"] * 3])
    across = text_figures([["a b c d", "e f g h"], ["a b c d"], ["a b c x"]])
    assert same_prompt["self_overlap"] == 0.0
    # Its own pairs ab bc cd; of "a b c x" ab bc are the same: 2 of 4. "e f g h" shares nothing.
    assert across["self_overlap"] == pytest.approx((1.0 + 0.0 + 1.0 + 0.5) / 4)


def test_what_can_not_be_told_is_none() -> None:
    one_prompt = text_figures([["a b c d e", "a b c d f"]])
    assert one_prompt["self_overlap"] is None
    assert one_prompt["opening_share"] is None
    empty = text_figures([["", ""], [""]])
    assert set(empty.values()) == {None}
    assert text_figures([["one"], ["two"]])["distinct_2"] is None


def test_the_commonest_opening_counts_all_completions() -> None:
    texts = [["This paper presents a parser", "Short"], ["this paper presents a, b"], ["We do not do so"]]
    assert commonest_opening(texts) == ("this paper presents a", 0.5)
    assert commonest_opening([["b b b b"], ["a a a a"]]) == ("a a a a", 0.5)  # by alphabet where it is a tie
    assert text_figures(texts)["opening_share"] == 0.5


def test_parts_of_a_reward_leave_out_what_could_not_be_scored() -> None:
    groups = [{"length": (0.0, 1.0), "judge": (None, None)}, {"length": (3.0, None), "judge": (None, 0.5)}]
    parts = reward_parts(groups)
    assert parts["length"]["mean"] == pytest.approx(4 / 3)
    assert parts["length"]["std"] == pytest.approx(math.sqrt(((4 / 3) ** 2 + (1 / 3) ** 2 + (5 / 3) ** 2) / 3))
    assert (parts["length"]["min"], parts["length"]["max"]) == (0.0, 3.0)
    assert parts["length"]["group_std"] == pytest.approx((0.5 + 0.0) / 2)
    assert parts["length"]["unscored"] == pytest.approx(1 / 4)
    assert parts["judge"]["mean"] == 0.5
    assert parts["judge"]["unscored"] == pytest.approx(3 / 4)
    nothing = reward_parts([{"judge": (None,)}])["judge"]
    assert nothing == {"mean": None, "std": None, "min": None, "max": None, "group_std": None, "unscored": 1.0}


def test_rewards_correlate_within_groups_whatever_they_do_between_them() -> None:
    # Within each group one rises as the other falls; between the groups both rise.
    groups = [{"a": (0.0, 1.0), "b": (1.0, 0.0)}, {"a": (10.0, 11.0), "b": (11.0, 10.0)}]
    assert reward_correlation(groups) == {"a~b": pytest.approx(-1.0)}


def test_a_correlation_needs_both_to_vary_and_both_to_be_there() -> None:
    assert reward_correlation([{"a": (0.1, 0.1, 0.1), "b": (0.0, 0.5, 1.0)}]) == {"a~b": None}
    holes = [{"a": (0.0, None, 1.0), "b": (0.0, 9.0, 1.0)}, {"a": (None, None), "b": (1.0, 2.0)}]
    assert reward_correlation(holes) == {"a~b": pytest.approx(1.0)}
    assert reward_correlation([{"a": (1.0, 2.0)}]) == {}


def test_equal_values_have_no_deviation_at_all() -> None:
    assert deviation([0.1] * 7) == 0.0
    assert deviation([1.0, 3.0]) == 1.0


def test_lengths_spread_within_groups_and_completions_of_one_prompt_are_not_each_others_overlap() -> None:
    def group(prompt_id: str, lengths: list[int], text: str) -> group_pb2.ScoredGroup:
        scored = group_pb2.ScoredGroup()
        scored.group.prompt.prompt_id = prompt_id
        scored.group.prompt.target_tokens = 10
        for length in lengths:
            scored.group.completions.add(
                token_ids=[5] * length + [2], finish_reason=common_pb2.FINISH_REASON_STOP, text=text
            )
            scored.rewards.add().rewards.add(name="length", value=-abs(length - 10) / 10)
        return scored

    figures = batch_figures([group("p0", [10, 10], "a b c d e"), group("p0", [4, 6], "a b c d e")])
    assert figures["length_std"] == pytest.approx(0.5)  # 0 and 1
    assert figures["self_overlap"] is None  # both groups are of one prompt
    assert figures["rewards"] == {"length": pytest.approx(-0.25)}
    assert figures["reward_parts"]["length"]["group_std"] == pytest.approx(0.05)
    assert figures["reward_correlation"] == {}
