"""The rouge rewards give rouge-score's digits; the unicode ones give them too where rouge-score sees the text."""

import string
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from tersely.errors import ConfigValue
from tersely.scorer.rewards import words as words_module
from tersely.scorer.rewards.base import RewardInput
from tersely.scorer.rewards.rouge import Rouge1Reward, Rouge2Reward, RougeLReward, RougeLsumReward, RougeReward
from tersely.scorer.rewards.rouge_unicode import (
    Rouge1UnicodeReward,
    Rouge2UnicodeReward,
    RougeLsumUnicodeReward,
    RougeLUnicodeReward,
)
from tersely.scorer.rewards.words import Vocabulary, VocabularyHolder, rouge_words, unicode_words

KINDS: dict[str, tuple[type[RougeReward], type[RougeReward]]] = {
    "rouge1": (Rouge1Reward, Rouge1UnicodeReward),
    "rouge2": (Rouge2Reward, Rouge2UnicodeReward),
    "rougeL": (RougeLReward, RougeLUnicodeReward),
    "rougeLsum": (RougeLsumReward, RougeLsumUnicodeReward),
}
REFERENCE = RougeScorer(list(KINDS), use_stemmer=True)
MEASURES = ("fmeasure", "recall", "precision")
REWARDS = {(kind, measure): pair[0](measure=measure) for kind, pair in KINDS.items() for measure in MEASURES}

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
    "police killed the gunman\n\nthe gunman police killed\nkilled",
]

# Few letters and word endings that the stemmer works on, so that words collide often.
words = st.one_of(
    st.text("abe", min_size=1, max_size=5),
    st.builds(
        str.__add__, st.sampled_from(["run", "summar", "hop", "ti"]), st.sampled_from(["s", "ning", "izes", "ied"])
    ),
    st.text(string.printable, max_size=6),
)
texts = st.one_of(
    st.lists(words, max_size=25).map(" ".join),
    st.lists(st.text("ab c\n", max_size=12), max_size=5).map("\n".join),
    st.text(max_size=60),
)


def assert_same(reference: str, text: str) -> None:
    expected = REFERENCE.score(reference, text)
    for (kind, measure), reward in REWARDS.items():
        value = reward.score([RewardInput(text=text, reference=reference)])[0]
        if reference.strip():
            wanted = getattr(expected[kind], measure)
            assert value == pytest.approx(wanted, abs=1e-9), (kind, measure, reference, text)
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


@settings(max_examples=100, deadline=None)
@given(
    reference=st.text([chr(n) for n in range(128)], max_size=60),
    text=st.text([chr(n) for n in range(128)], max_size=60),
)
def test_on_ascii_text_the_unicode_rewards_give_the_same(reference: str, text: str) -> None:
    item = [RewardInput(text=text, reference=reference)]
    for plain, unicode in KINDS.values():
        assert unicode().score(item) == plain().score(item)


@pytest.mark.parametrize("pair", KINDS.values(), ids=KINDS)
def test_a_batch_gives_each_item_what_it_gets_alone(pair: tuple[type[RougeReward], type[RougeReward]]) -> None:
    for reward in (pair[0](), pair[1]()):
        batch = [RewardInput(text=t, reference=r, group_key="same") for r in SENTENCES[:3] for t in SENTENCES]
        assert reward.score(batch) == [reward.score([item])[0] for item in batch]


def test_a_reference_is_read_once_per_call_and_a_word_stemmed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    holder = VocabularyHolder(lambda text: (seen.append(text), rouge_words(text))[1])
    monkeypatch.setattr(RougeLReward, "vocabularies", holder)
    stemmed: list[str] = []
    vocabulary = holder.take()
    original = vocabulary._stem
    monkeypatch.setattr(vocabulary, "_stem", lambda word: (stemmed.append(word), original(word))[1])
    RougeLReward().score([RewardInput(text=f"running words {n}", reference="runs of words") for n in range(8)])
    assert seen.count("runs of words") == 1
    assert len(seen) == 9
    assert sorted(stemmed) == ["running", "runs", "words"]


def test_a_full_vocabulary_is_exchanged_between_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words_module, "MOST_WORDS", 10)
    holder = VocabularyHolder(rouge_words)
    monkeypatch.setattr(RougeLReward, "vocabularies", holder)
    reward, first = RougeLReward(), holder.take()
    item = RewardInput(text=" ".join(f"w{n}" for n in range(30)), reference="w1 w5 w40")
    before = reward.score([item])
    assert len(first) > 10
    assert reward.score([item]) == before
    assert holder.take() is not first


def test_threads_that_meet_new_words_at_once_never_share_a_character() -> None:
    vocabulary = Vocabulary(rouge_words)
    texts_of = [" ".join(f"x{n}y{thread % 2}" for n in range(3000)) for thread in range(4)]
    threads = [threading.Thread(target=vocabulary.encode, args=(text,)) for text in texts_of]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(vocabulary.values())) == len(vocabulary) == 6000


@pytest.mark.parametrize("reference", ["", "  \n"])
def test_an_empty_reference_is_absent_and_not_zero(reference: str) -> None:
    for pair in KINDS.values():
        assert pair[0]().score([RewardInput(text="a text", reference=reference)]) == [None]


def test_an_empty_summary_scores_zero() -> None:
    assert RougeLReward().score([RewardInput(text="", reference="a reference")]) == [0.0]


@pytest.mark.parametrize(
    "text",
    [
        "Статья предлагает новую модель.",
        "文章提出了一种新模型。",
        "تقترح المقالة نموذجا جديدا",
        "यह लेख एक नया मॉडल प्रस्तुत करता है",
        "บทความนี้เสนอแบบจำลองใหม่",
        "🙂🚀 🙂",
    ],
)
def test_another_script_scores_zero_as_in_rouge_score_and_one_in_the_unicode_rewards(text: str) -> None:
    item = [RewardInput(text=text, reference=text)]
    assert RougeLReward().score(item) == [0.0]
    assert REFERENCE.score(text, text)["rougeL"].fmeasure == 0
    assert [pair[1]().score(item) for pair in KINDS.values()] == [[1.0]] * 4


def test_words_of_scripts_without_spaces_are_single_characters_and_marks_stay_with_their_letter() -> None:
    assert unicode_words("新模型 GPT4 は速い") == ["新", "模", "型", "gpt4", "は", "速", "い"]
    assert unicode_words("लेख एक") == ["लेख", "एक"]
    assert unicode_words("Straße STRASSE") == ["strasse", "strasse"]


def test_sentences_of_lsum_are_lines() -> None:
    item = RewardInput(text="killed police the gunman", reference="police killed\nthe gunman")
    lines = RewardInput(text="the gunman\npolice killed", reference=item.reference)
    assert RougeLReward().score([item, lines]) == [0.75, 0.5]
    assert RougeLsumReward().score([item, lines]) == [0.75, 1.0]


def test_a_wrong_measure_names_the_nearest() -> None:
    with pytest.raises(ConfigValue) as caught:
        RougeLReward(measure="f_measure")
    assert caught.value.way_out == "Did you mean fmeasure?"
    with pytest.raises(ConfigValue, match=r"rewards\.rouge_2_unicode\.measure"):
        Rouge2UnicodeReward(measure="f1")
