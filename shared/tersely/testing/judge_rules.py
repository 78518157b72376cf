"""What a rule server reads out of a judge's prompt, and how it answers: by words, not by a model.

The rules are crude on purpose. They give every pair of texts one value per axis that a test can work out for itself,
and a value that falls when a summary says what its document does not.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

AXES = ("faithfulness", "coverage", "conciseness", "clarity")
HIGHEST = 10

Rule = Callable[[str, str, str], float]
"""(axis, document, summary) -> score on the scale of 0 to 10."""

_OPENING = re.compile(r"<(document|summary)\b([^<>]*)>", re.IGNORECASE)
_NAMED_AXIS = re.compile(rf"\b(?:axis|criterion|criteria|rubric|metric)\W+({'|'.join(AXES)})\b", re.IGNORECASE)
_ANY_AXIS = re.compile(rf"\b({'|'.join(AXES)})\b", re.IGNORECASE)
_WORD = re.compile(r"\w+")
_ORDER = re.compile(
    r"\b(?:ignore|disregard|forget) (?:all |any |the |your |these |previous |prior |above |earlier )+"
    r"|\byou (?:must|will|shall) (?:now )?(?:give|award|output|return|score|answer)\b"
    r"|\b(?:give|award|assign|rate|grade|score)(?: it| this| the summary| this summary)?(?: a| as| with)?"
    r" (?:perfect|full marks|10\b|ten\b)"
    r"|\"score\"\s*:\s*10\b|\bnew (?:instructions?|rubric)\b|\bsystem (?:prompt|override|message)\b",
    re.IGNORECASE,
)
"""Orders that no rubric gives; a prompt's own words about its scale, such as "from 0 to 10", are none."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A judge's prompt, taken apart.

    Attributes:
        axis: The axis that is asked for; empty when the prompt names none.
        document: Text between the document's delimiters; empty without.
        summary: Text between the summary's delimiters; empty without.
        delimited: Whether exactly one document and one summary stand between delimiters.
        outside: All the rest: what a judge would take for its instructions.
        orders: Words in the rest that order a score. The judge's own rubrics have none, so that they come from a text
            which got out of its delimiters.
    """

    axis: str
    document: str
    summary: str
    delimited: bool
    outside: str
    orders: tuple[str, ...]


def read_prompt(text: str) -> Prompt:
    """Takes a prompt apart at ``<document ...>`` and ``<summary ...>``, each closed by its own name.

    What follows the name, such as a random word against forgery, may be repeated in the closing delimiter; where it is,
    only that one closes the text. A second text of a name counts as outside: somebody opened it who should not.
    """
    found: dict[str, list[str]] = {"document": [], "summary": []}
    rest: list[str] = []
    at = 0
    for name, inside, begins, ends in _delimited(text):
        rest.append(text[at:begins])
        at = ends
        if found[name]:
            rest.append(inside)
        found[name].append(inside)
    outside = "".join([*rest, text[at:]])
    named = _NAMED_AXIS.search(outside)
    counted = Counter(word.lower() for word in _ANY_AXIS.findall(outside)).most_common(1)
    return Prompt(
        axis=named[1].lower() if named else counted[0][0] if counted else "",
        document=found["document"][0] if found["document"] else "",
        summary=found["summary"][0] if found["summary"] else "",
        delimited=all(len(texts) == 1 for texts in found.values()),
        outside=outside,
        orders=tuple(match[0] for match in _ORDER.finditer(outside)),
    )


def _delimited(text: str) -> list[tuple[str, str, int, int]]:
    """(name, text between, start, end) of each delimited text, from left to right; case makes no difference."""
    pieces: list[tuple[str, str, int, int]] = []
    at = 0
    while opened := _OPENING.search(text, at):
        name, mark = opened[1], opened[2]
        at = opened.end()
        for closing in (f"</{name}{mark}>", f"</{name}>"):
            closed = re.compile(re.escape(closing), re.IGNORECASE).search(text, opened.end())
            if closed:
                inside = text[opened.end() : closed.start()].strip("\n")
                pieces.append((name.lower(), inside, opened.start(), closed.end()))
                at = closed.end()
                break
    return pieces


def word_rule(axis: str, document: str, summary: str) -> float:
    """Scores by words, 0 to 10, the same for the same texts whoever asks.

    faithfulness: share of the summary's words that stand in the document. coverage: share of the document's long words
    (six letters and more) that the summary has, times 3, at most 10. conciseness: 10 up to a quarter of the document's
    words, falling to 0 at all of them. clarity: share of different words among the summary's. Empty summaries get 0.
    """
    words, source = _words(summary), _words(document)
    if not words:
        return 0.0
    if axis == "faithfulness":
        return HIGHEST * sum(word in set(source) for word in words) / len(words)
    if axis == "coverage":
        long = {word for word in source if len(word) >= 6}
        return min(10.0, 3 * HIGHEST * len(long & set(words)) / len(long)) if long else 0.0
    if axis == "conciseness":
        share = len(words) / max(len(source), 1)
        return HIGHEST * min(1.0, max(0.0, (1 - share) / 0.75))
    return HIGHEST * len(set(words)) / len(words)


def _words(text: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(text)]


def score_odds(score: float) -> dict[int, float]:
    """Probabilities of the whole scores on both sides, whose mean is the score."""
    low = min(math.floor(score), HIGHEST)
    share = score - low
    return {low: 1.0 - share, low + 1: share} if share > 1e-9 else {low: 1.0}
