"""Texts as strings with one character per word: how the rouge rewards see them.

Every different word (or stem) gets a code point of its own, so that a text becomes a Python string. Such strings are
compared exactly, counted fast, and taken by rapidfuzz without hashing words. Stemming, which is what rouge-score spends
its time on, happens once per different word and not once per occurrence.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from itertools import count

from nltk.stem.porter import PorterStemmer
from regex import compile as compile_regex

MOST_WORDS = 200_000
"""Different words that a vocabulary takes before a fresh one is begun: 20 MB, and far from the last code point."""
_TEXTS_KEPT = 256
_LONGEST_KEPT = 20_000

_ROUGE_WORD = compile_regex(r"[a-z0-9]+")
_UNICODE_WORD = compile_regex(
    # scripts that write no spaces between words, and pictures: one character is one word
    r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]\p{M}*|\p{Emoji_Presentation}"
    r"|(?:(?![\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}])[\p{L}\p{N}\p{M}])+"
)


def rouge_words(text: str) -> list[str]:
    """Words as rouge-score 0.1.2 finds them, before stemming: lower case, runs of a-z and 0-9, nothing else."""
    found: list[str] = _ROUGE_WORD.findall(text.lower())
    return found


def unicode_words(text: str) -> list[str]:
    """Words of any script, case folded: runs of letters, digits and combining marks.

    In Chinese, Japanese, Thai, Lao, Khmer and Burmese each character counts as a word, and so does an emoji. On plain
    ASCII text the words are those of `rouge_words`.
    """
    found: list[str] = _UNICODE_WORD.findall(text.casefold())
    return found


class Vocabulary(dict[str, str]):
    """Word -> its character; a word not seen before gets its stem's, or a new one.

    Args:
        split: Text -> words.

    Words are stemmed as rouge-score does: those of more than three characters, by nltk's Porter stemmer, which leaves
    words outside a-z as they are. Safe for several threads.
    """

    def __init__(self, split: Callable[[str], list[str]]) -> None:
        super().__init__()
        self._split = split
        self._stem = PorterStemmer().stem
        self._characters: dict[str, str] = {}
        self._next = count(1)
        self._remembered = lru_cache(maxsize=_TEXTS_KEPT)(self._encode)

    def __missing__(self, word: str) -> str:
        stem = self._stem(word) if len(word) > 3 and word.isascii() else word
        # next() and setdefault are atomic: two threads may waste a code point, never share one
        character = self._characters.setdefault(stem, chr(next(self._next)))
        self[word] = character
        return character

    def encode(self, text: str) -> str:
        """The text, one character per word; short texts are remembered, as several rewards see the same."""
        return self._remembered(text) if len(text) <= _LONGEST_KEPT else self._encode(text)

    def _encode(self, text: str) -> str:
        return "".join(map(self.__getitem__, self._split(text)))


class VocabularyHolder:
    """The vocabulary in use; exchanged for an empty one when it is full, so that hostile texts can't fill memory.

    Args:
        split: Text -> words.
    """

    def __init__(self, split: Callable[[str], list[str]]) -> None:
        self._split = split
        self._current = Vocabulary(split)

    def take(self) -> Vocabulary:
        """The vocabulary for one call; characters of two vocabularies must not be compared."""
        if len(self._current) > MOST_WORDS:
            self._current = Vocabulary(self._split)
        return self._current


ROUGE = VocabularyHolder(rouge_words)
UNICODE = VocabularyHolder(unicode_words)
