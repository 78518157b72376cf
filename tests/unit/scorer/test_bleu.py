"""BLEU and chrF are sacrebleu's, divided by 100, and absent without a reference."""

from __future__ import annotations

import pytest
from sacrebleu import sentence_bleu, sentence_chrf

from tersely.errors import ConfigValue
from tersely.scorer.rewards.base import RewardInput
from tersely.scorer.rewards.bleu import BleuReward, ChrfReward

PAIRS = [
    ("the cat sat on the mat", "the cat sat on a mat"),
    ("we propose a model for parsing", "A new parser is proposed, with a model of syntax."),
    ("", "something"),
    ("word", "word"),
    ("模型 学习 摘要", "模型 学习 写 摘要"),
    ("résumé 🙂 ok", "résumé 🙂 fine"),
]


@pytest.mark.parametrize(("text", "reference"), PAIRS)
def test_values_are_sacrebleus_own(text: str, reference: str) -> None:
    item = RewardInput(text, reference=reference)
    bleu = sentence_bleu(text, [reference], smooth_method="exp", use_effective_order=True).score / 100
    assert BleuReward().score([item])[0] == pytest.approx(bleu, abs=1e-12)
    assert ChrfReward().score([item])[0] == pytest.approx(sentence_chrf(text, [reference]).score / 100, abs=1e-12)


def test_a_short_summary_without_a_common_four_gram_is_not_zero() -> None:
    assert (BleuReward().score([RewardInput("the cat sat there", reference="the cat was there")])[0] or 0) > 0.1


@pytest.mark.parametrize("reward", [BleuReward(), ChrfReward()])
def test_without_a_reference_there_is_no_value(reward: BleuReward | ChrfReward) -> None:
    assert reward.score([RewardInput("text", reference=" \n"), RewardInput("a b", reference="a b")])[0] is None


def test_chrf_against_the_document_compares_with_the_source_and_needs_one() -> None:
    reward = ChrfReward(against="document")
    item = RewardInput("the cat sat", reference="something else", document="the cat sat on the mat")
    expected = sentence_chrf("the cat sat", ["the cat sat on the mat"]).score / 100
    assert reward.score([item, RewardInput("a", reference="a")]) == [pytest.approx(expected, abs=1e-12), None]
    assert reward.absent_reason == "no source text"
    with pytest.raises(ConfigValue, match=r"rewards\.chrf\.against"):
        ChrfReward(against="summary")
