"""ROUGE-1, -2, -L and -Lsum, to the digits of rouge-score with stemming, and much faster.

rouge-score spends its time on Porter stemming and on tables in Python. Here a different word is stemmed once, a
reference is read once per call, and rapidfuzz finds the length of the longest common subsequence, 64 words at a time.
Source: Lin 2004, "ROUGE: a Package for Automatic Evaluation of Summaries"; the digits are rouge-score 0.1.2's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from operator import add
from typing import ClassVar

from rapidfuzz.distance import LCSseq

from tersely.scorer.rewards.base import RewardInput, checked_choice
from tersely.scorer.rewards.lcs import common_positions
from tersely.scorer.rewards.words import ROUGE, Vocabulary, VocabularyHolder

MEASURES = ("fmeasure", "recall", "precision")
Matcher = Callable[[str], tuple[int, int, int]]
"""Summary -> (what it has in common with the reference, of how much in the summary, of how much in the reference)."""


class RougeReward(ABC):
    """What the rouge rewards share: words in common with the reference.

    Words are rouge-score's: lower case, a-z and 0-9 only, stemmed. Text in another script has no words there and gets
    0; the rewards named `_unicode` see it.

    Args:
        measure: `fmeasure` (F1), `recall` or `precision`.
    """

    name: ClassVar[str]
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    higher_is_better: ClassVar[bool] = True
    gamed_by: ClassVar[str]
    absent_reason: ClassVar[str] = "no reference summary"
    vocabularies: ClassVar[VocabularyHolder] = ROUGE

    def __init__(self, *, measure: str = "fmeasure") -> None:
        self.measure = checked_choice(self.name, "measure", measure, MEASURES)

    def score(self, batch: Sequence[RewardInput]) -> list[float | None]:
        """Values in [0, 1]; None when the reference is empty or blank."""
        vocabulary = self.vocabularies.take()
        matchers: dict[str, Matcher | None] = {}
        values: list[float | None] = []
        for item in batch:
            reference = item.reference
            if reference not in matchers:
                matchers[reference] = self._matcher(reference, vocabulary) if reference.strip() else None
            match = matchers[reference]
            values.append(None if match is None else self._value(*match(item.text)))
        return values

    @abstractmethod
    def _matcher(self, reference: str, vocabulary: Vocabulary) -> Matcher:
        """Reads a reference once, for the summaries that are compared with it."""

    def _value(self, common: int, of_summary: int, of_reference: int) -> float:
        if not common:
            return 0.0
        precision, recall = common / of_summary, common / of_reference
        if self.measure == "recall":
            return recall
        if self.measure == "precision":
            return precision
        return 2 * precision * recall / (precision + recall)


class Rouge1Reward(RougeReward):
    """ROUGE-1: single words in common, in any order, each as often as it occurs in both."""

    name: ClassVar[str] = "rouge_1"
    gamed_by: ClassVar[str] = "a bag of frequent words without grammar; recall by length, precision by brevity"

    def _matcher(self, reference: str, vocabulary: Vocabulary) -> Matcher:
        wanted = Counter(vocabulary.encode(reference))
        of_reference = wanted.total()

        def match(text: str) -> tuple[int, int, int]:
            words = vocabulary.encode(text)
            return _in_common(wanted, Counter(words)), len(words), of_reference

        return match


class Rouge2Reward(RougeReward):
    """ROUGE-2: pairs of neighbouring words in common, each as often as it occurs in both."""

    name: ClassVar[str] = "rouge_2"
    gamed_by: ClassVar[str] = "stock phrases of two words; recall by length, precision by brevity"

    def _matcher(self, reference: str, vocabulary: Vocabulary) -> Matcher:
        wanted = _pairs(vocabulary.encode(reference))
        of_reference = wanted.total()

        def match(text: str) -> tuple[int, int, int]:
            pairs = _pairs(vocabulary.encode(text))
            return _in_common(wanted, pairs), pairs.total(), of_reference

        return match


class RougeLReward(RougeReward):
    """ROUGE-L: longest common subsequence of words with the reference, over line breaks."""

    name: ClassVar[str] = "rouge_l"
    gamed_by: ClassVar[str] = "copying frequent words in the reference's order; recall by length, precision by brevity"

    def _matcher(self, reference: str, vocabulary: Vocabulary) -> Matcher:
        wanted = vocabulary.encode(reference)

        def match(text: str) -> tuple[int, int, int]:
            words = vocabulary.encode(text)
            return LCSseq.similarity(wanted, words), len(words), len(wanted)

        return match


class RougeLsumReward(RougeReward):
    """ROUGE-Lsum: per sentence of the reference, the union of its common subsequences with the summary's sentences.

    Sentences are lines, as in rouge-score: put one sentence on a line. Without line breaks it is ROUGE-L, but for a
    word that the subsequence holds more often than both texts allow.
    """

    name: ClassVar[str] = "rouge_lsum"
    gamed_by: ClassVar[str] = "one word per line: order within a line is all that counts; recall by length"

    def _matcher(self, reference: str, vocabulary: Vocabulary) -> Matcher:
        wanted = _lines(reference, vocabulary)
        of_reference = sum(map(len, wanted))
        counts = Counter("".join(wanted))

        def match(text: str) -> tuple[int, int, int]:
            lines = _lines(text, vocabulary)
            left_here, left_there = Counter("".join(lines)), counts.copy()
            common = 0
            for sentence in wanted:
                union: set[int] = set()
                for line in lines:
                    union |= common_positions(sentence, line)
                for position in sorted(union):
                    word = sentence[position]
                    # as in rouge-score: no word counts more often than it occurs in either text
                    if left_here[word] > 0 and left_there[word] > 0:
                        common += 1
                        left_here[word] -= 1
                        left_there[word] -= 1
            return common, sum(map(len, lines)), of_reference

        return match


def _pairs(words: str) -> Counter[str]:
    return Counter(map(add, words, words[1:]))


def _in_common(wanted: Counter[str], found: Counter[str]) -> int:
    return sum(min(number, wanted[key]) for key, number in found.items() if key in wanted)


def _lines(text: str, vocabulary: Vocabulary) -> list[str]:
    return [words for line in text.split("\n") if (words := vocabulary.encode(line))]
