"""Where every random choice of a run comes from: pure functions of the run seed and the place in the run.

A completion's token at a position is drawn by inverting the distribution's CDF at one uniform number, and that number
is a hash of (group seed, sample index, position). So a token depends on no generator's state: not on the worker, the
batch it shares, what was generated before, nor on whether a draft was verified many positions at once.
"""

from __future__ import annotations

import hashlib
import struct

from tersely.types import GroupId, RunId

_TWO_TO_MINUS_53 = 2.0**-53


def group_seed(run_seed: int, issue_number: int, prompt_id: str) -> int:
    """Sampling seed of a group, an unsigned 64-bit integer; the run id is not part of it."""
    text = f"{run_seed}|{issue_number}|{prompt_id}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8, person=b"tersely-seed").digest(), "big")


def uniform(seed: int, sample_index: int, position: int) -> float:
    """The number in [0, 1), with 53 random bits, that decides one token of one sample."""
    block = struct.pack(">QII", seed, sample_index, position)
    digest = hashlib.blake2b(block, digest_size=8, person=b"tersely-token").digest()
    return (int.from_bytes(digest, "big") >> 11) * _TWO_TO_MINUS_53


def group_id(run_id: RunId, issue_number: int, prompt_id: str) -> GroupId:
    """Id of a group, 32 hex digits: the same when the same issue is sent again."""
    text = f"{run_id}|{issue_number}|{prompt_id}".encode()
    return GroupId(hashlib.blake2b(text, digest_size=16, person=b"tersely-group").hexdigest())
