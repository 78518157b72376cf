"""What a summary does with words, without a reference: repeating its own, and copying the document's."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar

from tersely.errors import ConfigValue
from tersely.scorer.rewards.base import RewardInput

_WORD = re.compile(r"\w+")


def word_ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    """Runs of `n` words in lower case; a word is a run of letters, digits and _ of any script."""
    words = _WORD.findall(text.lower())
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


class RepetitionReward:
    """Minus the share of word n-grams that occurred before in the same summary: 0 without any, near -1 for one phrase.

    Args:
        n: Words per n-gram.
    """

    name: ClassVar[str] = "repetition"
    range: ClassVar[tuple[float, float]] = (-1.0, 0.0)
    higher_is_better: ClassVar[bool] = True
    gamed_by: ClassVar[str] = "any text without repetition, also one that has nothing to do with the document"
    absent_reason: ClassVar[str] = "no text"

    def __init__(self, *, n: int = 3) -> None:
        self._n = _positive(self.name, n)

    def score(self, batch: Sequence[RewardInput]) -> list[float | None]:
        """Values in (-1, 0]; a summary with fewer than n words has none to repeat and gets 0."""
        return [self._value(item.text) for item in batch]

    def _value(self, text: str) -> float:
        ngrams = word_ngrams(text, self._n)
        return -(len(ngrams) - len(set(ngrams))) / len(ngrams) if ngrams else 0.0


class CopyRateReward:
    """Share of the summary's word n-grams that stand in the document: 1 for an extract. Lower is more abstractive.

    Give it a negative weight to reward own wording, a positive one to keep to the source.

    Args:
        n: Words per n-gram.
    """

    name: ClassVar[str] = "copy_rate"
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    higher_is_better: ClassVar[bool] = False
    gamed_by: ClassVar[str] = "changing every n-th word (against copying); copying the beginning (for it)"
    absent_reason: ClassVar[str] = "no document, or a summary of fewer words than an n-gram"

    def __init__(self, *, n: int = 4) -> None:
        self._n = _positive(self.name, n)

    def score(self, batch: Sequence[RewardInput]) -> list[float | None]:
        """Values in [0, 1]; None without a document, or with fewer than n words."""
        documents: dict[str, set[tuple[str, ...]]] = {}
        values: list[float | None] = []
        for item in batch:
            ngrams = word_ngrams(item.text, self._n)
            if not ngrams or not item.document.strip():
                values.append(None)
                continue
            source = documents.get(item.document)
            if source is None:
                source = documents[item.document] = set(word_ngrams(item.document, self._n))
            values.append(sum(ngram in source for ngram in ngrams) / len(ngrams))
        return values


def _positive(reward: str, n: object) -> int:
    if isinstance(n, int) and not isinstance(n, bool) and n >= 1:
        return n
    raise ConfigValue(f"rewards.{reward}.n is {n!r}; it must be a whole number of words.", "Use 2, 3 or 4.")
