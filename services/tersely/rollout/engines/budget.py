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


def tokens_held(group: group_pb2.PromptGroup) -> int:
    """Most tokens that a group holds keys and values of: its prompt once, and every sample's limit."""
    return len(group.prompt_token_ids) + group.group_size * group.sampling.max_completion_tokens


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

    def has_room(self, running: Collection[group_pb2.PromptGroup], group: group_pb2.PromptGroup) -> bool:
        """Whether a group may join; always, when nothing runs."""
        if not running:
            return True
        if is_bit_exact(group) or any(is_bit_exact(other) for other in running):
            return False
        together = [*running, group]
        if sum(one.group_size for one in together) > self.sequences:
            return False
        return (_padded_tokens(together) if self.from_memory else sum(map(tokens_held, together))) <= self.tokens


def _padded_tokens(groups: Collection[group_pb2.PromptGroup]) -> int:
    longest_prompt = max(len(one.prompt_token_ids) for one in groups)
    longest_limit = max(one.sampling.max_completion_tokens for one in groups)
    return len(groups) * longest_prompt + sum(one.group_size for one in groups) * longest_limit


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return int(psutil.virtual_memory().available)
