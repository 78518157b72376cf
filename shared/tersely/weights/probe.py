"""A few fixed tokens by which one sees that an engine computes with the weights it was given."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from tersely.v1 import checkpoint_pb2

PROBE_TOKENS = 24
_FIRST_ID, _BEYOND_LAST_ID = 3, 30_000


@dataclass(frozen=True, slots=True)
class Probe:
    """Tokens with what the learner says of them.

    Attributes:
        token_ids: At least two.
        logprobs: Nats, temperature 1, of each id from the second on, given those before it.
    """

    token_ids: Sequence[int]
    logprobs: Sequence[float]

    def to_proto(self) -> checkpoint_pb2.Probe:
        """The same as a message."""
        return checkpoint_pb2.Probe(token_ids=self.token_ids, logprobs=self.logprobs)


def probe_ids(vocabulary: int) -> list[int]:
    """`PROBE_TOKENS` ids drawn once for all from a vocabulary, without its first ids (often special) and rare ones.

    Unlikely tokens are a strict probe: their log-probabilities are large, and every layer has a part in them.

    Args:
        vocabulary: Number of ids, >= 1.
    """
    beyond = min(vocabulary, _BEYOND_LAST_ID)
    draw = random.Random(20_240_117)
    return [draw.randrange(min(_FIRST_ID, beyond - 1), beyond) for _ in range(PROBE_TOKENS)]
