"""The known name nearest to a mistyped one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

CUTOFF = 0.6


def nearest_name(word: str, known: Iterable[str], cutoff: float = CUTOFF) -> str | None:
    """The most similar of the known names; None when none is as similar as `cutoff`, from 0 to 1 (equal)."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return close[0] if close else None


def nearest(word: str, known: Iterable[str]) -> str:
    """A way out for a name that is not known: the nearest one, or all of them."""
    names = sorted(known)
    close = nearest_name(word, names)
    if close is not None:
        return f"Did you mean {close}?"
    return f"Known here: {', '.join(names)}." if names else "Nothing is known here."
