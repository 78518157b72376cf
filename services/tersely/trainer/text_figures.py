"""Figures of a batch's texts, on lower-case words: how much completions repeat themselves and each other.

distinct-n is that of Li et al. 2016 (arXiv:1510.03055): different n-grams over all n-grams. It falls with the amount of
text, so it is taken over a fixed number of words, to be comparable from step to step and from run to run.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import zip_longest

DISTINCT_WORDS = 1000
"""Words that distinct_1 and distinct_2 look at: one completion of each prompt in turn until they are full."""
OVERLAP_COMPLETIONS = 64
"""Completions that self_overlap looks at, taken in the same order: it compares each with each."""
OPENING_WORDS = 4

_WORD = re.compile(r"\w+")


def text_figures(texts: Sequence[Sequence[str]]) -> dict[str, float | None]:
    """Diversity of a batch.

    Args:
        texts: Per prompt the completions' texts. Groups of one prompt must have been put together.

    Returns:
        `distinct_1`, `distinct_2`: share of different words and word pairs in the first DISTINCT_WORDS words.
        `self_overlap`: mean over completions of the largest Jaccard similarity of its word pairs to those of a
        completion of another prompt. `opening_share`: share of completions that begin with the commonest first four
        words. None where there is too little text, or only one prompt.
    """
    ordered = [
        (prompt, _WORD.findall(text.lower()))
        for turn in zip_longest(*texts)
        for prompt, text in enumerate(turn)
        if text is not None
    ]
    sample: list[list[str]] = []
    room = DISTINCT_WORDS
    for _, words in ordered:
        sample.append(words[:room])
        room -= len(sample[-1])
    opening = commonest_opening(texts)
    return {
        "distinct_1": _distinct(sample, 1),
        "distinct_2": _distinct(sample, 2),
        "self_overlap": _self_overlap(ordered[:OVERLAP_COMPLETIONS]),
        "opening_share": opening[1] if opening[0] and len(texts) > 1 else None,
    }


def commonest_opening(texts: Sequence[Sequence[str]]) -> tuple[str, float]:
    """The commonest first words of the completions and the share of completions that begin so; ("", 0.0) if none."""
    openings = Counter(
        tuple(words[:OPENING_WORDS])
        for group in texts
        for text in group
        if len(words := _WORD.findall(text.lower())) >= OPENING_WORDS
    )
    if not openings:
        return "", 0.0
    opening, count = min(openings.items(), key=lambda item: (-item[1], item[0]))
    return " ".join(opening), count / sum(len(group) for group in texts)


def _ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return list(zip(*(words[i:] for i in range(n)), strict=False))


def _distinct(sample: Sequence[Sequence[str]], n: int) -> float | None:
    grams = [gram for words in sample for gram in _ngrams(words, n)]
    return len(set(grams)) / len(grams) if grams else None


def _self_overlap(ordered: Sequence[tuple[int, Sequence[str]]]) -> float | None:
    pairs = [(prompt, set(_ngrams(words, 2))) for prompt, words in ordered]
    largest = []
    for prompt, grams in pairs:
        if grams:
            others = [other for of, other in pairs if of != prompt and other]
            if others:
                largest.append(max(len(grams & other) / len(grams | other) for other in others))
    return sum(largest) / len(largest) if largest else None
