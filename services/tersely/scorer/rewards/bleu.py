"""BLEU and chrF of one summary against its reference, by sacrebleu, as shares in [0, 1].

Sources: Papineni et al. 2002 with the exponential smoothing of Chen and Cherry 2014 (method 3); Popovic 2015 for chrF.
Unsmoothed sentence BLEU is 0 for nearly every summary of twenty words, because one missing 4-gram makes it so; chrF
counts characters and is the better cheap signal for short texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from tersely.scorer.rewards.base import RewardInput


class BleuReward:
    """Smoothed sentence BLEU: `sacrebleu.BLEU(smooth_method="exp", effective_order=True)` / 100."""

    name: ClassVar[str] = "bleu"
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    higher_is_better: ClassVar[bool] = True
    gamed_by: ClassVar[str] = "short runs of words copied in the reference's wording; brevity costs, length does not"
    absent_reason: ClassVar[str] = "no reference summary"

    def __init__(self) -> None:
        self._bleu = BLEU(smooth_method="exp", effective_order=True)

    def score(self, batch: Sequence[RewardInput]) -> list[float | None]:
        """Values in [0, 1]; None when the reference is empty or blank."""
        return [
            self._bleu.sentence_score(item.text, [item.reference]).score / 100 if item.reference.strip() else None
            for item in batch
        ]


class ChrfReward:
    """chrF2: F-score of character n-grams up to 6, recall counting twice; `sacrebleu.CHRF()` / 100."""

    name: ClassVar[str] = "chrf"
    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    higher_is_better: ClassVar[bool] = True
    gamed_by: ClassVar[str] = "length (recall counts more than precision) and word stems in any order"
    absent_reason: ClassVar[str] = "no reference summary"

    def __init__(self) -> None:
        self._chrf = CHRF()

    def score(self, batch: Sequence[RewardInput]) -> list[float | None]:
        """Values in [0, 1]; None when the reference is empty or blank."""
        return [
            self._chrf.sentence_score(item.text, [item.reference]).score / 100 if item.reference.strip() else None
            for item in batch
        ]
