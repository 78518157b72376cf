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

from tersely.scorer.rewards.base import RewardInput, checked_choice


class _SacrebleuReward:
    """A sacrebleu sentence score against one text of the item, as a share."""

    range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    higher_is_better: ClassVar[bool] = True

    def __init__(self, metric: BLEU | CHRF, against: str = "reference") -> None:
        self._metric = metric
        self._against_document = against == "document"
        self.absent_reason = "no source text" if self._against_document else "no reference summary"

    def score(self, batch: Sequence[RewardInput]) -> list[float | None]:
        """Values in [0, 1]; None when the text to compare with is empty or blank."""
        others = [item.document if self._against_document else item.reference for item in batch]
        return [
            self._metric.sentence_score(item.text, [other]).score / 100 if other.strip() else None
            for item, other in zip(batch, others, strict=True)
        ]


class BleuReward(_SacrebleuReward):
    """Smoothed sentence BLEU: `sacrebleu.BLEU(smooth_method="exp", effective_order=True)` / 100."""

    name: ClassVar[str] = "bleu"
    gamed_by: ClassVar[str] = "short runs of words copied in the reference's wording; brevity costs, length does not"

    def __init__(self) -> None:
        super().__init__(BLEU(smooth_method="exp", effective_order=True))


class ChrfReward(_SacrebleuReward):
    """chrF2: F-score of character n-grams up to 6, recall counting twice; `sacrebleu.CHRF()` / 100.

    Args:
        against: `reference`, or `document`: how much of the source's own wording is kept, an anchor against general
            sentences that would fit any document. It pays for copying, so weigh it below the rest.
    """

    name: ClassVar[str] = "chrf"
    gamed_by: ClassVar[str] = "length (recall counts more than precision), word stems in any order; copying the source"

    def __init__(self, *, against: str = "reference") -> None:
        super().__init__(CHRF(), checked_choice(self.name, "against", against, ("reference", "document")))
