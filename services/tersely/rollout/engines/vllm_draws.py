"""Sampling inside vLLM by our own numbers, so that a token depends on its seed and the logits alone.

vLLM's sampler keeps a generator per request. This logits processor draws the token itself, as the other engines do,
and leaves vLLM a row in which only that token is possible. It notes the logprob under the temperature on the way, for
greedy samples too. vLLM makes the processor, and its requests are plain values, so the two sides meet in a table of
this module; both are in one process (`VLLM_ENABLE_V1_MULTIPROCESSING=0`).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from tersely.grpo.seeds import uniform
from tersely.rollout.engines.sampling import sample

_ARGUMENT = "tersely_draw"
_open: dict[int, Draw] = {}
_numbers = itertools.count()


@dataclass(slots=True)
class Draw:
    """How one sample is drawn, and what was drawn.

    Attributes:
        seed: Seed of the group.
        sample_index: Place in the group.
        greedy: Whether the likeliest token is taken.
        temperature: Divides the logits.
        first_position: Position of the first token that vLLM's request samples; those before are part of its prompt.
        drawn: Token id and its logprob (nats), by position. A position may be drawn again, after a prefill in parts or
            under new weights before the token was handed on: the last one counts.
    """

    seed: int
    sample_index: int
    greedy: bool
    temperature: float
    first_position: int = 0
    drawn: dict[int, tuple[int, float]] = field(default_factory=dict)
    number: int = field(default_factory=lambda: next(_numbers))

    def open(self) -> dict[str, int]:
        """Puts it on the table; returns the `extra_args` of the request that it is for."""
        _open[self.number] = self
        return {_ARGUMENT: self.number}

    def close(self) -> None:
        """Takes it off the table."""
        _open.pop(self.number, None)

    def at(self, position: int) -> float | None:
        """The number that decides the token at a position; None for the likeliest."""
        return None if self.greedy else uniform(self.seed, self.sample_index, position)


class SeededDraws(LogitsProcessor):  # type: ignore[misc]
    """Draws for requests that carry a `Draw`; leaves the others alone."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self._rows: dict[int, tuple[Draw, list[int]]] = {}

    def is_argmax_invariant(self) -> bool:
        """No: it decides the argmax."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follows requests through the rows of the batch."""
        process_dict_updates(self._rows, batch_update, _begin)

    def apply(self, logits: Tensor) -> Tensor:
        """Draws one token per row that has a `Draw` and leaves only that one possible.

        Args:
            logits: fp32, rows x vocabulary; changed in place.
        """
        if not self._rows:
            return logits
        places = sorted(self._rows)
        entries = [self._rows[place] for place in places]
        rows = [(draw, draw.first_position + len(output_ids)) for draw, output_ids in entries]
        ours = logits if places == list(range(logits.shape[0])) else logits[places]
        drawn = sample(ours, [draw.temperature for draw, _ in rows], [draw.at(position) for draw, position in rows])
        for (draw, position), token, logprob in zip(rows, drawn.ids, drawn.logprobs, strict=True):
            draw.drawn[position] = (token, logprob)
        at = torch.tensor(places, device=logits.device)
        logits[at] = float("-inf")
        logits[at, torch.tensor(drawn.ids, device=logits.device)] = 0.0
        return logits


def _begin(params: Any, prompt_ids: list[int] | None, output_ids: list[int]) -> tuple[Draw, list[int]] | None:
    """The state of a request that enters the batch; `output_ids` is vLLM's own list, which grows."""
    number = (params.extra_args or {}).get(_ARGUMENT)
    return None if number is None else (_open[number], output_ids)
