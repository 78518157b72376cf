"""Synonyms out of a WordNet that is installed on this machine, read by nltk.

Looked for in this order: $WNSEARCHDIR and $WNHOME/dict (WordNet's own variables), nltk's data folders,
/usr/share/wordnet (Debian's wordnet-base), Homebrew's and WordNet's own default folders.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from functools import cache, lru_cache
from io import StringIO
from pathlib import Path
from threading import Lock
from typing import Any

import nltk.corpus
import nltk.data
from nltk.corpus.reader.wordnet import WordNetCorpusReader

WORDS_REMEMBERED = 100_000
_NEEDED = ("data.noun", "index.noun", "data.verb", "data.adj", "data.adv")
_DEFAULT_FOLDERS = (
    "/usr/share/wordnet",
    "/opt/homebrew/opt/wordnet/dict",
    "/usr/local/opt/wordnet/dict",
    "/usr/local/WordNet-3.0/dict",
)
_LEXICOGRAPHER_FILES = 45


class _DictFolder(WordNetCorpusReader):  # type: ignore[misc]
    """nltk's reader of a folder of WordNet's own files, which lacks nltk's list of lexicographer files.

    Their names stand nowhere in synonyms, so numbers serve.
    """

    def open(self, file: str) -> Any:
        """As the parent's, with the list made up where the folder has none."""
        if file == "lexnames" and not (Path(str(self.root)) / file).is_file():
            return StringIO("".join(f"{number:02d} file.{number} 0\n" for number in range(_LEXICOGRAPHER_FILES)))
        return super().open(file)

    def close(self) -> None:
        """Closes the files that stay open between look-ups; the next look-up opens them again."""
        for file in self._data_file_map.values():
            file.close()
        self._data_file_map.clear()

    def map_wn(self, version: str = "wordnet") -> None:
        """No map to WordNet 3.0, which only other languages need, and which takes a second WordNet to make."""


class WordSynonyms:
    """What nltk's METEOR asks WordNet for, remembered per word and safe for several threads.

    Args:
        reader: A WordNet reader of nltk; None finds no synonym of any word.
    """

    def __init__(self, reader: Any | None = None) -> None:
        self._reader = reader
        self._lock = Lock()
        self._remembered = lru_cache(maxsize=WORDS_REMEMBERED)(self._look_up)

    def synsets(self, word: str) -> list[_Synonyms]:
        """The word's synonyms as one set that answers as nltk's synsets do; empty when it has none."""
        return self._remembered(word)

    def _look_up(self, word: str) -> list[_Synonyms]:
        if self._reader is None:
            return []
        with self._lock:  # the reader seeks in files that all callers share
            names = {lemma.name() for synset in self._reader.synsets(word) for lemma in synset.lemmas()}
        return [_Synonyms(names)] if names else []


class _Synonyms:
    """A set of names behind the two calls that nltk's METEOR makes."""

    def __init__(self, names: set[str]) -> None:
        self._lemmas = [_Name(name) for name in sorted(names)]

    def lemmas(self) -> list[_Name]:
        return self._lemmas


class _Name:
    def __init__(self, name: str) -> None:
        self._name = name

    def name(self) -> str:
        return self._name


def find_wordnet(environment: Mapping[str, str] = os.environ) -> Any | None:
    """A reader, by nltk, of the first WordNet found here; None without one.

    Reading it takes about two seconds and 150 MB.

    Args:
        environment: Where WNSEARCHDIR and WNHOME are looked up.
    """
    named = [folder for folder in _named_folders(environment) if _holds_wordnet(folder)]
    if named:
        return _read(named[0].resolve())
    found = [folder for folder in map(Path, _DEFAULT_FOLDERS) if _holds_wordnet(folder)]
    return _of_nltk() or (_read(found[0].resolve()) if found else None)


def _of_nltk() -> Any | None:
    """The WordNet among nltk's own data, zipped or not."""
    try:
        nltk.corpus.wordnet.ensure_loaded()
    except LookupError:
        return None
    return nltk.corpus.wordnet


def _named_folders(environment: Mapping[str, str]) -> Iterator[Path]:
    if environment.get("WNSEARCHDIR"):
        yield Path(environment["WNSEARCHDIR"])
    if environment.get("WNHOME"):
        yield Path(environment["WNHOME"]) / "dict"


def _holds_wordnet(folder: Path) -> bool:
    return all((folder / name).is_file() for name in _NEEDED)


@cache
def _read(folder: Path) -> _DictFolder:
    if str(folder) not in nltk.data.path:
        nltk.data.path.append(str(folder))  # nltk opens files below these folders only
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that it has no other languages
        return _DictFolder(str(folder), None)
