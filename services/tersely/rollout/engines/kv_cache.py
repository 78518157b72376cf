"""Keys and values of all rows of a batch, in buffers that are allocated once.

Layout per layer: rows x heads x positions x head size. Prompts end at one common position (left padding), so that every
row writes its next token into the same column; rows that end are closed up by moving the last row into their place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache


@dataclass(frozen=True, slots=True)
class PromptState:
    """A prefilled prompt: its cache (one row), and the logits after its last token (1 x vocabulary)."""

    cache: DynamicCache
    logits: Tensor

    @property
    def length(self) -> int:
        """Tokens of the prompt."""
        return int(self.cache.get_seq_length())


class _RowLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """One layer's buffers; `update` writes in place and returns views."""

    def __init__(self, keys_RHTD: Tensor, values_RHTD: Tensor, length: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.key_buffer, self.value_buffer = keys_RHTD, values_RHTD
        self.length, self.rows = length, keys_RHTD.shape[0]
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: the buffers exist from the start."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Appends one position for all rows; returns all positions so far."""
        end = self.length + key_states.shape[-2]
        self.key_buffer[: self.rows, :, self.length : end] = key_states
        self.value_buffer[: self.rows, :, self.length : end] = value_states
        self.length = end
        return self.key_buffer[: self.rows, :, :end], self.value_buffer[: self.rows, :, :end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(positions that a mask covers, offset of the first)."""
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        """Positions written so far, padding included."""
        return self.length

    def get_max_length(self) -> int:
        """Positions there is room for."""
        return int(self.key_buffer.shape[-2])

    def drop_row(self, row: int) -> None:
        """Closes the gap that a finished row leaves, with the last row."""
        self.rows -= 1
        if row != self.rows:
            self.key_buffer[row, :, : self.length] = self.key_buffer[self.rows, :, : self.length]
            self.value_buffer[row, :, : self.length] = self.value_buffer[self.rows, :, : self.length]


class RowCache(Cache):
    """Cache of a batch of rows over one or more prompts.

    Args:
        prompts: Prefilled prompts.
        rows_per_prompt: Rows that each prompt is repeated for, in order.
        room: Positions to keep free after the prompts.
    """

    def __init__(self, prompts: Sequence[PromptState], rows_per_prompt: Sequence[int], room: int) -> None:
        self.prompt_columns = max(prompt.length for prompt in prompts)
        capacity, rows = self.prompt_columns + room, sum(rows_per_prompt)
        self._rows: list[_RowLayer] = []
        for index in range(len(prompts[0].cache.layers)):
            pair = []
            for name in ("keys", "values"):
                first_1HTD = getattr(prompts[0].cache.layers[index], name)
                heads, size = first_1HTD.shape[1], first_1HTD.shape[3]
                # Zeros, not empty: a masked column may hold anything but NaN.
                buffer_RHTD = first_1HTD.new_zeros((rows, heads, capacity, size))
                start = 0
                for prompt, repeat in zip(prompts, rows_per_prompt, strict=True):
                    source_1HTD = getattr(prompt.cache.layers[index], name)
                    columns = slice(self.prompt_columns - prompt.length, self.prompt_columns)
                    buffer_RHTD[start : start + repeat, :, columns] = source_1HTD
                    start += repeat
                pair.append(buffer_RHTD)
            self._rows.append(_RowLayer(pair[0], pair[1], self.prompt_columns))
        super().__init__(layers=list(self._rows))
        self.mask_R11T = self._make_mask(prompts, rows_per_prompt, rows, capacity)

    def _make_mask(
        self, prompts: Sequence[PromptState], rows_per_prompt: Sequence[int], rows: int, capacity: int
    ) -> Tensor | None:
        if all(prompt.length == self.prompt_columns for prompt in prompts):
            return None
        logits = prompts[0].logits
        mask_R11T = torch.zeros((rows, 1, 1, capacity), dtype=logits.dtype, device=logits.device)
        start = 0
        for prompt, repeat in zip(prompts, rows_per_prompt, strict=True):
            mask_R11T[start : start + repeat, :, :, : self.prompt_columns - prompt.length] = float("-inf")
            start += repeat
        return mask_R11T

    def step_mask(self, rows: int) -> Tensor | None:
        """Additive mask of the next step, rows x 1 x 1 x positions; None when no row is padded."""
        if self.mask_R11T is None:
            return None
        return self.mask_R11T[:rows, :, :, : self.get_seq_length() + 1]

    def drop_row(self, row: int) -> None:
        """Forgets a finished row; the last row takes its index."""
        for layer in self._rows:
            layer.drop_row(row)
        if self.mask_R11T is not None:
            self.mask_R11T[row] = self.mask_R11T[self._rows[0].rows]
