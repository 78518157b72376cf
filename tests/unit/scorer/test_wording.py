"""Repetition and copying, against counts made by hand."""

from __future__ import annotations

import pytest

from tersely.errors import ConfigValue
from tersely.scorer.rewards.base import RewardInput
from tersely.scorer.rewards.wording import CopyRateReward, RepetitionReward


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a b c d e", 0.0),
        ("a b c a b c", -0.25),  # abc bca cab abc: one of four occurred before
        ("no no no no no", -2 / 3),
        ("two words", 0.0),
        ("", 0.0),
    ],
)
def test_repetition_counts_trigrams_seen_before(text: str, value: float) -> None:
    assert RepetitionReward().score([RewardInput(text)]) == [pytest.approx(value)]


def test_copy_rate_is_the_share_of_ngrams_of_the_document() -> None:
    document = "We show that the model learns to stop at the right place."
    rate = CopyRateReward(n=2).score(
        [
            RewardInput("The model learns to sing", document=document),  # the-model, model-learns, learns-to of 4
            RewardInput("THE MODEL learns!", document=document),
            RewardInput("nothing in common here", document=document),
        ]
    )
    assert rate == [0.75, 1.0, 0.0]


def test_copy_rate_is_absent_without_a_document_or_with_too_few_words() -> None:
    assert CopyRateReward().score([RewardInput("a b c d"), RewardInput("a b c", document="a b c d")]) == [None, None]


@pytest.mark.parametrize("n", [0, -1, "3", True])
def test_n_must_be_a_number_of_words(n: object) -> None:
    with pytest.raises(ConfigValue, match="whole number"):
        RepetitionReward(n=n)  # type: ignore[arg-type]
