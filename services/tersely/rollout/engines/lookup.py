"""Guesses of the next tokens by prompt look-up: summaries repeat their source.

The last two or three tokens are looked up in the prompt and in what the row has said; what followed there last is the
guess (Saxena, "Prompt Lookup Decoding", 2023). A guess decides nothing: every token is the seeded sample at its place,
and the guesses only let one forward pass serve several places. How many are tried follows from how many were right,
from the row's own history alone, so that a batch of its own comes out the same in any process.
"""

from __future__ import annotations

from collections.abc import Iterable

_LONGEST, _SHORTEST = 3, 2
"""Tokens that must be equal for a guess."""
_FEWEST_DRAFTED = 1


class PromptIndex:
    """Where each two and three tokens of a prompt were last, for all rows of a group.

    Args:
        ids: The prompt.
    """

    def __init__(self, ids: Iterable[int]) -> None:
        self.ids = list(ids)
        self.after: dict[tuple[int, ...], int] = {}
        for end in range(1, len(self.ids)):
            for size in range(_SHORTEST, min(_LONGEST, end) + 1):
                self.after[tuple(self.ids[end - size : end])] = end


class Drafter:
    """Guesses for one row.

    Args:
        prompt: Of its group.
    """

    def __init__(self, prompt: PromptIndex) -> None:
        self._prompt = prompt
        self._ids = list(prompt.ids)
        self._after: dict[tuple[int, ...], int] = {}
        self._trust = 2.0
        self.drafted, self.accepted = 0, 0

    def add(self, token: int) -> None:
        """Takes a token that was sampled."""
        end = len(self._ids)
        for size in range(_SHORTEST, min(_LONGEST, end) + 1):
            self._after[tuple(self._ids[end - size : end])] = end
        self._ids.append(token)

    def draft(self, most: int) -> list[int]:
        """At most so many guesses of what comes next."""
        most = min(most, round(self._trust))
        if most < 1:
            return []
        for size in range(_LONGEST, _SHORTEST - 1, -1):
            key = tuple(self._ids[-size:])
            start = self._after.get(key) or self._prompt.after.get(key)
            if start is not None:
                return self._ids[start : start + most]
        return []

    def judge(self, drafted: int, accepted: int) -> None:
        """Learns how many of its last guesses were right."""
        self.drafted += drafted
        self.accepted += accepted
        if drafted:
            # Twice as many after a guess that was right throughout; back to one after a wrong first token.
            self._trust = max(_FEWEST_DRAFTED, 2.0 * accepted if accepted == drafted else float(accepted + 1))
