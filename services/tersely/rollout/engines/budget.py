"""How much an engine may hold at a time: sequences, and tokens that fit in memory."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import psutil
import torch

from tersely.rollout.engines.base import EngineSettings, is_bit_exact
from tersely.rollout.engines.kv_cache import CacheShape
from tersely.v1 import group_pb2

_SHARE_OF_FREE_MEMORY = 0.5
"""The rest is for the next weights, which are laid out beside the ones that serve, and for activations."""


@dataclass(frozen=True, slots=True)
class Load:
    """What a group takes up.

    Attributes:
        group: As it was asked for.
        rows: Its samples that have not ended.
    """

    group: group_pb2.PromptGroup
    rows: int

    @property
    def tokens(self) -> int:
        """Most tokens it may come to hold keys and values of: its prompt once, and the limit of each of the rows."""
        return len(self.group.prompt_token_ids) + self.rows * self.group.sampling.max_completion_tokens


@dataclass(frozen=True, slots=True)
class Budget:
    """What may run together.

    Attributes:
        sequences: Most rows.
        tokens: Most tokens held; where that follows from memory, unused places of the buffers count too.
        from_memory: Whether it follows from memory.
    """

    sequences: int
    tokens: int
    from_memory: bool

    @classmethod
    def of(cls, settings: EngineSettings, shape: CacheShape) -> Budget:
        """From the settings, or from the memory that is free now."""
        if settings.batch_tokens is not None:
            return cls(settings.batch_sequences, settings.batch_tokens, from_memory=False)
        tokens = int(_free_bytes(shape.device) * _SHARE_OF_FREE_MEMORY) // shape.bytes_per_token
        return cls(settings.batch_sequences, tokens, from_memory=True)

    def has_room(self, running: Collection[Load], group: group_pb2.PromptGroup) -> bool:
        """Whether a group may join; always, when nothing runs."""
        if not running:
            return True
        if is_bit_exact(group) or any(is_bit_exact(other.group) for other in running):
            return False
        together = [*running, Load(group, group.group_size)]
        if sum(load.rows for load in together) > self.sequences:
            return False
        return (_padded_tokens(together) if self.from_memory else sum(load.tokens for load in together)) <= self.tokens


def _padded_tokens(loads: Collection[Load]) -> int:
    longest_prompt = max(len(load.group.prompt_token_ids) for load in loads)
    longest_limit = max(load.group.sampling.max_completion_tokens for load in loads)
    return len(loads) * longest_prompt + sum(load.rows for load in loads) * longest_limit


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return int(psutil.virtual_memory().available)
