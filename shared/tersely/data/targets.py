"""Which length a prompt asks for, where a recipe gives a range: a pure function of the place in the run."""

from __future__ import annotations

import hashlib

_TWO_TO_64 = 1 << 64


def draw_target(targets: tuple[int, int], seed: int, number: int, prompt_id: str) -> int:
    """A whole number of tokens, evenly from `targets` with both ends; the same for the same arguments.

    Args:
        targets: Least and most, in tokens; equal ends leave nothing to draw.
        seed: Seed of the run (training) or of the evaluation (held-out prompts).
        number: Issue number, or the place of a held-out prompt.
        prompt_id: The prompt.
    """
    least, most = targets
    if least == most:
        return least
    text = f"{seed}|{number}|{prompt_id}".encode()
    drawn = int.from_bytes(hashlib.blake2b(text, digest_size=8, person=b"tersely-length").digest(), "big")
    return least + drawn * (most - least + 1) // _TWO_TO_64
