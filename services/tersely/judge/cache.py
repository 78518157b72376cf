"""Answers on disk, by judge, rubric and texts: who asks again is not charged again."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from dataclasses import dataclass
from pathlib import Path

from tersely.errors import DiskFull, JudgeCache
from tersely.models.cache import cache_folder

FILE = "answers.sqlite"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    key TEXT PRIMARY KEY,
    score REAL NOT NULL,
    reason TEXT NOT NULL,
    weighted INTEGER NOT NULL,
    judge TEXT NOT NULL,
    rubric TEXT NOT NULL
) WITHOUT ROWID
"""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a judge said of one axis in one round.

    Attributes:
        score: 0 to 1.
        reason: Its words.
        weighted: Whether the score is the mean over the endpoint's token probabilities.
    """

    score: float
    reason: str
    weighted: bool


def default_folder() -> Path:
    """Where answers are kept when no folder is named: `judge` in the cache folder."""
    return cache_folder() / "judge"


def answer_key(judge: str, rubric: str, document: str, summary: str, round_number: int, temperature: float) -> str:
    """The key of an answer.

    Args:
        judge: Name of the model.
        rubric: Fingerprint of the rubric and the words around it.
        document: Source text, as it was given.
        summary: Summary, as it was given.
        round_number: From 0; each round is an answer of its own.
        temperature: Sampling temperature.
    """
    parts = [judge, rubric, document, summary, round_number, temperature]
    return hashlib.sha256(json.dumps(parts).encode("utf-8", "surrogatepass")).hexdigest()


class AnswerCache:
    """A sqlite file in a folder, which several processes may share.

    Args:
        folder: Made when it is not there.

    Raises:
        JudgeCache: The folder or the file in it can't be used.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self._lock = threading.Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self._path, timeout=30.0, check_same_thread=False, isolation_level=None)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.execute(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise self._unusable(error) from None

    def get(self, key: str) -> Answer | None:
        """The answer; None when there is none.

        Raises:
            JudgeCache.
        """
        try:
            with self._lock:
                row = self._db.execute("SELECT score, reason, weighted FROM answers WHERE key = ?", (key,)).fetchone()
        except sqlite3.Error as error:
            raise self._unusable(error) from None
        return None if row is None else Answer(float(row[0]), str(row[1]), bool(row[2]))

    def put(self, key: str, answer: Answer, *, judge: str, rubric: str) -> None:
        """Keeps an answer; the first of two under one key stays.

        Raises:
            DiskFull, JudgeCache.
        """
        # A lone surrogate from JSON has no UTF-8.
        reason = answer.reason.encode("utf-8", "replace").decode()
        values = (key, answer.score, reason, int(answer.weighted), judge, rubric)
        try:
            with self._lock:
                self._db.execute("INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?, ?)", values)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
                raise DiskFull(
                    f"No room for the judge's cache {self._path}.", "Make room, or name another folder: --cache DIR."
                ) from None
            raise self._unusable(error) from None
        except sqlite3.Error as error:
            raise self._unusable(error) from None

    def close(self) -> None:
        """Closes the file; nothing can be asked afterwards."""
        with self._lock:
            self._db.close()

    def _unusable(self, error: Exception) -> JudgeCache:
        return JudgeCache(
            f"The judge's cache {self._path} can't be used: {error}.",
            "Name another folder (--cache DIR, judge.cache), or remove this one; its answers are then asked for again.",
        )
