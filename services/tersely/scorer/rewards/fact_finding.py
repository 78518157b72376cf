"""Numbers, dates and names of a text: what a summary kept of its source's, and what it made up.

No model and no word list beyond months and small numbers, so it is cheap and can't be talked to; what it sees is
spelling. Names are capitalised words, so scripts without capitals have numbers and dates in digits only.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal

_MONTHS = {
    name: number
    for number, names in enumerate(
        (
            ("january", "jan"),
            ("february", "feb"),
            ("march", "mar"),
            ("april", "apr"),
            ("may",),
            ("june", "jun"),
            ("july", "jul"),
            ("august", "aug"),
            ("september", "sept", "sep"),
            ("october", "oct"),
            ("november", "nov"),
            ("december", "dec"),
        ),
        start=1,
    )
    for name in names
}
# "one" is mostly a pronoun
_WORDS_FROM_TWO = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_NUMBER_WORDS = {word: str(number) for number, word in enumerate(_WORDS_FROM_TWO, start=2)}
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_MONTH = "|".join(sorted(_MONTHS, key=len, reverse=True))
# March and May are words, too: a month is a date only with a day or a year beside it
_DATES = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"\b(?P<year>\d{4})-(?P<month>\d{1,2})-(?P<day>\d{1,2})\b",
        rf"\b(?P<day>\d{{1,2}})(?:st|nd|rd|th)?(?: of)? (?P<month>{_MONTH})\.?(?:,? (?P<year>\d{{4}}))?\b",
        rf"\b(?P<month>{_MONTH})\.? (?P<day>\d{{1,2}})(?:st|nd|rd|th)?(?!\d)(?:,? (?P<year>\d{{4}}))?\b",
        rf"\b(?P<month>{_MONTH})\.?,? (?P<year>\d{{4}})\b",
    )
)
_NUMBER = re.compile(
    r"(?<![\w.,])(?P<digits>\d{1,3}(?:[,\u202f\u00a0]\d{3})+(?:\.\d+)?|\d+(?:[.,]\d+)?)(?![\d])"
    rf"(?:\s*(?P<scale>{'|'.join(_SCALES)})\b)?",
    re.I,
)
_NUMBER_WORD = re.compile(rf"\b({'|'.join(_NUMBER_WORDS)})\b", re.I)
_WORD = re.compile(r"[^\W_]+(?:['’\-][^\W_]+)*")
_SENTENCE_END = re.compile(r"(?:[.!?:…]|^)[\"'”’)\]]*\s*$|\n\s*$")

_MOST_DIGITS = 25
"""Longer numbers are compared as they stand."""

Date = tuple[int | None, int, int | None]
"""Year, month, day; None where the text does not say."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What stands in a text, with how often.

    Attributes:
        numbers: Normalised: `1,000`, `1000.0` and `1 thousand` are one; also years and days of dates.
        dates: Dates that name a month.
        names: Case-folded words that are written with a capital, and not only at the beginning of a sentence.
        words: Every word, case-folded: what a name can be found in.
    """

    numbers: Counter[str] = field(default_factory=Counter)
    dates: Counter[Date] = field(default_factory=Counter)
    names: Counter[str] = field(default_factory=Counter)
    words: frozenset[str] = frozenset()


def facts_of(text: str) -> Facts:
    """The numbers, dates and names of a text."""
    text = unicodedata.normalize("NFKC", text)
    rest, dates = _take_dates(text)
    numbers = Counter(_numbers(rest))
    for year, _, day in list(dates.elements()):
        numbers.update(str(part) for part in (year, day) if part is not None)
    names, words = _names(text)
    return Facts(numbers, dates, names, words)


def _take_dates(text: str) -> tuple[str, Counter[Date]]:
    dates: Counter[Date] = Counter()
    for pattern in _DATES:

        def replace(match: re.Match[str]) -> str:
            parts = match.groupdict()
            month = parts["month"]
            number = int(month) if month.isdigit() else _MONTHS[month.lower()]
            year, day = parts.get("year"), parts.get("day")
            if not 1 <= number <= 12 or (day and not 1 <= int(day) <= 31):
                return match.group()
            dates[int(year) if year else None, number, int(day) if day else None] += 1
            return " "

        text = pattern.sub(replace, text)
    return text, dates


def _numbers(text: str) -> Iterator[str]:
    for match in _NUMBER.finditer(text):
        digits = match["digits"]
        grouped = re.fullmatch(r"\d{1,3}(?:[,\u202f\u00a0 ]\d{3})+(?:\.\d+)?", digits)
        plain = re.sub(r"[,\u202f\u00a0 ]", "", digits) if grouped else digits.replace(",", ".")
        if len(plain) > _MOST_DIGITS:
            yield plain
            continue
        value = Decimal(plain) * _SCALES.get((match["scale"] or "").lower(), 1)
        yield f"{value.normalize():f}"
    for match in _NUMBER_WORD.finditer(text):
        yield _NUMBER_WORDS[match[1].lower()]


def _names(text: str) -> tuple[Counter[str], frozenset[str]]:
    """Names, and all words. A word that is also written small in the text is no name."""
    found = [(match.group(), match.start()) for match in _WORD.finditer(text)]
    words = frozenset(_key(word) for word, _ in found)
    small = {_key(word) for word, _ in found if word[0].islower() and not _mixed(word)}
    marked: Counter[str] = Counter()
    sure: set[str] = set()
    for word, start in found:
        if not (word[0].isupper() or _mixed(word)) or len(word) < 2 or word.isdigit():
            continue
        key = _key(word)
        marked[key] += 1
        if _mixed(word) or not _SENTENCE_END.search(text[max(0, start - 8) : start]):
            sure.add(key)
    names = Counter({key: number for key, number in marked.items() if key in sure and key not in small})
    for month in _MONTHS:
        names.pop(month, None)
    return names, words


def _mixed(word: str) -> bool:
    """Whether capitals stand after the first letter: BERT, SmolLM2, iPhone."""
    return any(letter.isupper() for letter in word[1:])


def _key(word: str) -> str:
    """Case-folded, without a possessive."""
    return re.sub(r"['’]s?$", "", word.casefold())
