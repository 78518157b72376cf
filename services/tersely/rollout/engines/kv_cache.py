"""Keys and values of everything that runs: one buffer for prompts, one for what was sampled after them.

A group's prompt is held once, whatever the number of its samples. Slots 0 to n-1 of a buffer are in use; what ends is
replaced by the last one, so that products run over one block of memory. Nothing is allocated between two tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class CacheShape:
    """Sizes of a model's keys and values, and where they are kept."""

    layers: int
    heads: int
    head_size: int
    dtype: torch.dtype
    device: torch.device

    @property
    def bytes_per_token(self) -> int:
        """Keys and values of one token in all layers."""
        return self.layers * 2 * self.heads * self.head_size * self.dtype.itemsize


class SlotBuffer:
    """Slots of equal capacity; grows when it must, which is at an admission.

    Args:
        shape: Of the model.
    """

    def __init__(self, shape: CacheShape) -> None:
        self._shape = shape
        self.slots, self.capacity = 0, 0
        self.layers: list[Tensor] = []
        """Per layer: 2 (keys, values) x slots x heads x capacity x head size; masked places are finite."""
        self._data = torch.empty(0)

    def make(self, slots: int, capacity: int) -> None:
        """Forgets everything and has room for exactly this; as it was, if there is no memory."""
        self._use(self._zeros(slots, capacity), slots, capacity)

    def ensure(self, slots: int, capacity: int) -> None:
        """Has room for at least this, and keeps what is held; as it was, if there is no memory."""
        if slots > self.slots or capacity > self.capacity:
            self.resize(max(slots, self.slots), max(capacity, self.capacity))

    def resize(self, slots: int, capacity: int) -> None:
        """Has room for exactly this, and keeps what is held within it; as it was, if there is no memory."""
        if (slots, capacity) == (self.slots, self.capacity):
            return
        made = self._zeros(slots, capacity)
        held, length = min(slots, self.slots), min(capacity, self.capacity)
        if held and length:
            made[:, :, :held, :, :length] = self._data[:, :, :held, :, :length]
        self._use(made, slots, capacity)

    def _zeros(self, slots: int, capacity: int) -> Tensor:
        shape = self._shape
        # Zeros, not empty: a masked column may hold anything but NaN.
        return torch.zeros(
            (shape.layers, 2, slots, shape.heads, capacity, shape.head_size), dtype=shape.dtype, device=shape.device
        )

    def _use(self, made: Tensor, slots: int, capacity: int) -> None:
        self._data, self.slots, self.capacity = made, slots, capacity
        self.layers = list(made.unbind(0))

    def move(self, source: int, target: int, length: int) -> None:
        """Copies the first so many positions of a slot over another's."""
        if source != target and length:
            self._data[:, :, target, :, :length] = self._data[:, :, source, :, :length]
