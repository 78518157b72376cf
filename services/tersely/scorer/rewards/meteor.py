"""METEOR by nltk, and METEOR without synonyms under a name of its own.

Source: Lavie and Agarwal 2007, "Meteor: An Automatic Metric for MT Evaluation with High Levels of Correlation with
Human Judgments", with the parameters of nltk 3.10 (alpha 0.9, beta 3, gamma 0.5).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import ClassVar

from nltk.stem.porter import PorterStemmer
from nltk.translate.meteor_score import single_meteor_score

from tersely.errors import RewardFailed
from tersely.scorer.rewards.base import RewardInput
from tersely.scorer.rewards.wordnet import WORDS_REMEMBERED, WordSynonyms, find_wordnet
from tersely.scorer.rewards.words import unicode_words


class _RememberingStemmer:
    """nltk's Porter stemmer, asked once per word."""

    def __init__(self) -> None:
        self.stem = lru_cache(maxsize=WORDS_REMEMBERED)(PorterStemmer().stem)


class _Meteor:
    """METEOR over words of any script; see `unicode_words`."""

    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    higher_is_better: ClassVar[bool] = True
    absent_reason: ClassVar[str] = "no reference summary"

    def __init__(self, synonyms: WordSynonyms) -> None:
        self._synonyms = synonyms
        self._stemmer = _RememberingStemmer()

    def score(self, batch: Sequence[RewardInput]) -> list[float | None]:
        """Values in [0, 1); None when the reference is empty or blank."""
        references: dict[str, list[str]] = {}
        values: list[float | None] = []
        for item in batch:
            if not item.reference.strip():
                values.append(None)
                continue
            reference = references.get(item.reference)
            if reference is None:
                reference = references[item.reference] = unicode_words(item.reference)
            values.append(
                float(
                    single_meteor_score(
                        reference, unicode_words(item.text), stemmer=self._stemmer, wordnet=self._synonyms
                    )
                )
            )
        return values


class MeteorReward(_Meteor):
    """METEOR: words, stems and WordNet synonyms in common with the reference, recall weighing nine times precision.

    Raises:
        RewardFailed: If no WordNet is installed; METEOR without one is another metric, `meteor_exact_stem`.
    """

    name: ClassVar[str] = "meteor"
    gamed_by: ClassVar[str] = "length: recall counts nine times; synonyms of the reference's words in its order"

    def __init__(self) -> None:
        reader = find_wordnet()
        if reader is None:
            raise RewardFailed(
                "The reward meteor needs WordNet, and none was found.",
                "Install it (Debian: apt install wordnet-base; elsewhere: python -m nltk.downloader wordnet, or set"
                " WNSEARCHDIR to its dict folder), or use meteor_exact_stem, which does without synonyms.",
            )
        super().__init__(WordSynonyms(reader))


class MeteorExactStemReward(_Meteor):
    """METEOR's alignment and formula with equal words and equal stems only; needs no WordNet.

    Its values are lower than METEOR's and not to be compared with them.
    """

    name: ClassVar[str] = "meteor_exact_stem"
    gamed_by: ClassVar[str] = "length: recall counts nine times; the reference's words in its order"

    def __init__(self) -> None:
        super().__init__(WordSynonyms())
