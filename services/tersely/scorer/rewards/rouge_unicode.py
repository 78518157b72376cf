"""The rouge rewards for text in any script: the same counts over words that rouge-score's tokenizer would drop.

On plain ASCII text the values are those of `rouge_*`. Elsewhere they can't be compared with published figures, which
rest on rouge-score's a-z and 0-9.
"""

from __future__ import annotations

from typing import ClassVar

from tersely.scorer.rewards.rouge import Rouge1Reward, Rouge2Reward, RougeLReward, RougeLsumReward
from tersely.scorer.rewards.words import UNICODE, VocabularyHolder


class Rouge1UnicodeReward(Rouge1Reward):
    """ROUGE-1 over words of any script; a Chinese, Japanese, Thai, Lao, Khmer or Burmese character is a word."""

    name: ClassVar[str] = "rouge_1_unicode"
    vocabularies: ClassVar[VocabularyHolder] = UNICODE


class Rouge2UnicodeReward(Rouge2Reward):
    """ROUGE-2 over words of any script."""

    name: ClassVar[str] = "rouge_2_unicode"
    vocabularies: ClassVar[VocabularyHolder] = UNICODE


class RougeLUnicodeReward(RougeLReward):
    """ROUGE-L over words of any script."""

    name: ClassVar[str] = "rouge_l_unicode"
    vocabularies: ClassVar[VocabularyHolder] = UNICODE


class RougeLsumUnicodeReward(RougeLsumReward):
    """ROUGE-Lsum over words of any script; sentences are lines."""

    name: ClassVar[str] = "rouge_lsum_unicode"
    vocabularies: ClassVar[VocabularyHolder] = UNICODE
