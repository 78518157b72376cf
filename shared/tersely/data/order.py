"""Which prompt an issue number gets."""

from __future__ import annotations

import functools
import hashlib
import struct


def prompt_index(run_seed: int, issue_number: int, n: int) -> int:
    """Index of the prompt for an issue: each epoch of `n` issues is a permutation of its own.

    A pure function, so that a resumed run goes on where it was without keeping a cursor.

    Args:
        run_seed: Seed of the run, from 0.
        issue_number: Counts issues from 0, replacements included.
        n: Number of training prompts, at least 1.
    """
    if n < 1 or issue_number < 0:
        raise ValueError(f"no prompt for issue {issue_number} of {n}")
    epoch, position = divmod(issue_number, n)
    return _permutation(run_seed, epoch, n)[position]


@functools.lru_cache(maxsize=4)
def _permutation(run_seed: int, epoch: int, n: int) -> tuple[int, ...]:
    def key(index: int) -> bytes:
        text = f"{run_seed}|{epoch}|".encode() + struct.pack(">Q", index)
        return hashlib.blake2b(text, digest_size=16, person=b"tersely-order").digest()

    return tuple(sorted(range(n), key=key))
