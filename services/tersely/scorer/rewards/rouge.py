"""ROUGE-L, to the digits of rouge-score and much faster.

rouge-score spends its time on Porter stemming and on a table in Python. Here its own tokenizer runs with a stemmer that
remembers words, a reference is tokenised once per call, and rapidfuzz finds the longest common subsequence.
Source: Lin 2004, "ROUGE: a Package for Automatic Evaluation of Summaries"; the digits are rouge-score 0.1.2's.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import ClassVar

from nltk.stem.porter import PorterStemmer
from rapidfuzz.distance import LCSseq
from rouge_score import tokenize

from tersely.scorer.rewards.base import RewardInput, checked_choice

STEM_CACHE_WORDS = 200_000


class CachedStemmer:
    """nltk's Porter stemmer, asked once per word; has the one method that rouge-score's tokenizer calls."""

    def __init__(self) -> None:
        self.stem = lru_cache(maxsize=STEM_CACHE_WORDS)(PorterStemmer().stem)


class RougeLReward:
    """ROUGE-L with stemming: longest common subsequence of words with the reference.

    The tokenizer is rouge-score's: lower case, a-z and 0-9 only. Text in another script has no words there and gets 0.

    Args:
        measure: `fmeasure` (F1), `recall` or `precision`.
    """

    name: ClassVar[str] = "rouge_l"
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    higher_is_better: ClassVar[bool] = True
    gamed_by: ClassVar[str] = "copying frequent words in the reference's order; recall by length, precision by brevity"
    absent_reason: ClassVar[str] = "no reference summary"

    def __init__(self, *, measure: str = "fmeasure") -> None:
        self.measure = checked_choice(self.name, "measure", measure, ("fmeasure", "recall", "precision"))
        self._stemmer = CachedStemmer()

    def score(self, batch: Sequence[RewardInput]) -> list[float | None]:
        """Values in [0, 1]; None when the reference is empty or blank."""
        references: dict[str, _Reference] = {}
        values: list[float | None] = []
        for item in batch:
            if not item.reference.strip():
                values.append(None)
                continue
            reference = references.get(item.reference)
            if reference is None:
                reference = references[item.reference] = _Reference(self._words(item.reference))
            values.append(self._value(reference, self._words(item.text)))
        return values

    def _words(self, text: str) -> list[str]:
        words: list[str] = tokenize.tokenize(text, self._stemmer)
        return words

    def _value(self, reference: _Reference, words: list[str]) -> float:
        if not reference.ids or not words:
            return 0.0
        common = reference.common_subsequence(words)
        precision, recall = common / len(words), common / len(reference.ids)
        if self.measure == "recall":
            return recall
        if self.measure == "precision":
            return precision
        return 2 * precision * recall / (precision + recall) if common else 0.0


class _Reference:
    """A tokenised reference whose words are numbered from 1; a word it lacks is 0 and matches nothing.

    Numbers, because rapidfuzz compares words by hash and two different words could share one.
    """

    def __init__(self, words: list[str]) -> None:
        self._number: dict[str, int] = {}
        self.ids = [self._number.setdefault(word, len(self._number) + 1) for word in words]

    def common_subsequence(self, words: list[str]) -> int:
        """Length of the longest common subsequence with `words`."""
        return int(LCSseq.similarity(self.ids, [self._number.get(word, 0) for word in words]))
