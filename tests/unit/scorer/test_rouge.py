"""rouge_l gives rouge-score's digits."""

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from tersely.errors import ConfigValue
from tersely.scorer.rewards.base import RewardInput
from tersely.scorer.rewards.rouge import RougeLReward

REFERENCE = RougeScorer(["rougeL"], use_stemmer=True)
MEASURES = ("fmeasure", "recall", "precision")
REWARDS = {measure: RougeLReward(measure=measure) for measure in MEASURES}

SENTENCES = [
    "The authors propose a new model for the summarization of scientific articles.",
    "We propose new models that summarize scientific articles, and evaluate them on 3 data-sets (BLEU 27.5).",
    "Summaries' quality improves; however, running times don't.",
    "THE AUTHORS PROPOSE A MODEL",
    "models model modeling modelled modeller",
    "ties dies lies flies skies happily happy generalizations oscillators",
    "a b c d a b c d",
    "d c b a",
    "The café's naïve coöperation cost 12€ — “so what?” he said…",
    "Статья предлагает новую модель.",
    "文章提出了一种新模型。",
    "mixed текст with English words и числа 42",
    "\u0130stanbul \u017f \u212a",
    "!!! ... ---",
    "one\ntwo\r\nthree\tfour\u00a0five",
]

# Few letters and word endings that the stemmer works on, so that words collide often.
words = st.one_of(
    st.text("abe", min_size=1, max_size=5),
    st.builds(
        str.__add__, st.sampled_from(["run", "summar", "hop", "ti"]), st.sampled_from(["s", "ning", "izes", "ied"])
    ),
    st.text(string.printable, max_size=6),
)
texts = st.one_of(st.lists(words, max_size=25).map(" ".join), st.text(max_size=60))


def assert_same(reference: str, text: str) -> None:
    expected = REFERENCE.score(reference, text)["rougeL"]
    for measure, reward in REWARDS.items():
        value = reward.score([RewardInput(text=text, reference=reference)])[0]
        if reference.strip():
            assert value == pytest.approx(getattr(expected, measure), abs=1e-9), (measure, reference, text)
        else:
            assert value is None


@pytest.mark.parametrize("reference", SENTENCES)
def test_real_sentences_score_as_rouge_score_says(reference: str) -> None:
    for text in [*SENTENCES, ""]:
        assert_same(reference, text)


@settings(max_examples=200, deadline=None)
@given(reference=texts, text=texts)
def test_any_text_scores_as_rouge_score_says(reference: str, text: str) -> None:
    assert_same(reference, text)


def test_a_batch_gives_each_item_what_it_gets_alone() -> None:
    reward = RougeLReward()
    batch = [RewardInput(text=t, reference=r, group_key="same") for r in SENTENCES[:3] for t in SENTENCES]
    assert reward.score(batch) == [reward.score([item])[0] for item in batch]


def test_a_reference_is_tokenised_once_per_call(monkeypatch: pytest.MonkeyPatch) -> None:
    reward, seen = RougeLReward(), []
    original = reward._words
    monkeypatch.setattr(reward, "_words", lambda text: (seen.append(text), original(text))[1])
    reward.score([RewardInput(text=f"text {n}", reference=SENTENCES[0]) for n in range(8)])
    assert seen.count(SENTENCES[0]) == 1
    assert len(seen) == 9


@pytest.mark.parametrize("reference", ["", "  \n"])
def test_an_empty_reference_is_absent_and_not_zero(reference: str) -> None:
    assert RougeLReward().score([RewardInput(text="a text", reference=reference)]) == [None]


def test_an_empty_summary_scores_zero() -> None:
    assert RougeLReward().score([RewardInput(text="", reference="a reference")]) == [0.0]


def test_text_in_another_script_scores_zero_as_in_rouge_score() -> None:
    same = "Статья предлагает новую модель."
    assert RougeLReward().score([RewardInput(text=same, reference=same)]) == [0.0]
    assert REFERENCE.score(same, same)["rougeL"].fmeasure == 0


def test_a_wrong_measure_names_the_nearest() -> None:
    with pytest.raises(ConfigValue) as caught:
        RougeLReward(measure="f_measure")
    assert caught.value.way_out == "Did you mean fmeasure?"
