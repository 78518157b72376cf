"""Every metric beside its reference implementation on 2,000 pairs: real and random words, empty, long, any script."""

from __future__ import annotations

import random
from functools import cache
from importlib.resources import files

import pytest
from nltk.stem.porter import PorterStemmer
from nltk.translate.meteor_score import single_meteor_score
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu import sentence_bleu, sentence_chrf

from tersely.scorer.registry import build_reward
from tersely.scorer.rewards.base import RewardInput
from tersely.scorer.rewards.words import unicode_words

PAIRS = 2000
TOLERANCE = 1e-9
ODD = [
    "",
    "word",
    "Words",
    "文章提出了一种新的摘要模型，并在三个数据集上进行了评估。",
    "模型在两个数据集上取得了更好的结果。",
    "تقترح هذه الورقة نموذجا جديدا لتلخيص النصوص العلمية",
    "يحقق النموذج نتائج أفضل على مجموعتين من البيانات",
    "🙂👩‍👩‍👧‍👦🏳️‍🌈 🚀",
    "mixed نص 文字 text 🙂 42",
    "The café's naïve coöperation — “so what?”\nA second line.\n\nA third one",
    "!!! ... ---",
    "a_b-c d.e,f 1,000.5",
]
ROUGE = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL", "rouge_lsum": "rougeLsum"}


@cache
def pairs() -> tuple[tuple[str, str], ...]:
    """(summary, reference): all odd pairs, three of 1,000 words, and runs of real and of random words."""
    rng = random.Random(20)
    real = (files("tersely.models") / "tiny_text.txt").read_text(encoding="utf-8").split()
    endings = ["", "s", "ing", "ed", "ation", "ization", "ies", "ness", "'s", ".", ",", "\n"]
    stems = ["model", "summar", "run", "hop", "relat", "ti", "a", "of", "the", "x1", "42"]

    def random_text(words: int) -> str:
        return " ".join(rng.choice(stems) + rng.choice(endings) for _ in range(words))

    def real_text(words: int) -> str:
        start = rng.randrange(len(real) - words)
        return " ".join(real[start : start + words])

    made = [(text, other) for text in ODD for other in ODD]
    made += [(random_text(1000), random_text(1000)), (real_text(1000), real_text(1000)), (real_text(1000), "word")]
    while len(made) < PAIRS:
        text = real_text if len(made) % 2 else random_text
        made.append((text(rng.randint(0, 25)), text(rng.randint(1, 35))))
    return tuple(made)


def values(name: str) -> list[float | None]:
    return build_reward(name).score([RewardInput(text=text, reference=other) for text, other in pairs()])


def assert_equal(name: str, expected: list[float]) -> None:
    wrong = []
    for (text, other), value, wanted in zip(pairs(), values(name), expected, strict=True):
        if not other.strip():
            assert value is None
        elif value is None or abs(value - wanted) > TOLERANCE:
            wrong.append((text[:80], other[:80], value, wanted))
    assert not wrong, (name, len(wrong), wrong[:3])


def test_the_set_is_what_it_says() -> None:
    assert len(pairs()) == PAIRS
    lengths = [len(text.split()) for text, _ in pairs()]
    assert 0 in lengths
    assert 1 in lengths
    assert max(lengths) == 1000


def test_rouge_is_rouge_scores() -> None:
    scorer = RougeScorer(list(ROUGE.values()), use_stemmer=True)
    expected = [scorer.score(other, text) for text, other in pairs()]
    for name, kind in ROUGE.items():
        assert_equal(name, [scores[kind].fmeasure for scores in expected])


def test_bleu_is_sacrebleus() -> None:
    assert_equal(
        "bleu",
        [
            sentence_bleu(text, [other], smooth_method="exp", use_effective_order=True).score / 100
            for text, other in pairs()
        ],
    )


def test_chrf_is_sacrebleus() -> None:
    assert_equal("chrf", [sentence_chrf(text, [other]).score / 100 for text, other in pairs()])


class NoSynonyms:
    """A WordNet that knows no word."""

    def synsets(self, word: str) -> list[object]:
        return []


@pytest.mark.parametrize("name", ["meteor_exact_stem"])
def test_meteor_is_nltks(name: str) -> None:
    stemmer, wordnet = PorterStemmer(), NoSynonyms()
    expected = [
        single_meteor_score(unicode_words(other), unicode_words(text), stemmer=stemmer, wordnet=wordnet)
        for text, other in pairs()
    ]
    assert_equal(name, expected)
