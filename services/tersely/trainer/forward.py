"""Log-probabilities of a group's sampled tokens, by two ways that give the same gradients.

Shared: the prompt runs once, its keys and values keep their graph, and the completions run on them expanded. Padded:
each row is prompt + completion; for models with state other than keys and values, and as the reference in tests.

Transformers' own gradient checkpointing sets a cache that is passed in to None and goes on without the prompt. So with
`recompute` the checkpoint is ours: a function of (block of completions, keys and values of the prompt), run again in
the backward pass with the same inputs.

Shape letters: G samples, C longest completion, P prompt, R rows of a block, L its width, H hidden size, N positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from tersely.trainer.blocks import row_blocks
from tersely.trainer.head import sampled_logprobs

RECOMPUTE_BLOCK_POSITIONS = 1024
"""Most positions whose activations exist at once when they are recomputed block by block."""


@dataclass(frozen=True, slots=True)
class CompletionLogprobs:
    """Per sampled token; 0 beyond a row's length.

    Attributes:
        logprobs: [G, C] fp32 or wider, with gradient.
        entropy: [G, C] nats, without.
    """

    logprobs: torch.Tensor
    entropy: torch.Tensor


@dataclass(frozen=True, slots=True)
class ForwardSettings:
    """What both ways need beside model and ids.

    Attributes:
        temperature: Divides the logits, as it did when sampling.
        logit_chunk_tokens: Positions whose logits exist at once.
        recompute: Compute activations again in the backward pass.
        autocast: Type of the matrix products on accelerators; none: that of the weights.
    """

    temperature: float = 1.0
    logit_chunk_tokens: int = 256
    recompute: bool = False
    autocast: torch.dtype | None = None


Forward = Callable[
    [torch.nn.Module, torch.Tensor, torch.Tensor, Sequence[int], ForwardSettings],
    CompletionLogprobs,
]


def completion_logprobs_shared(
    model: torch.nn.Module,
    prompt_P: torch.Tensor,
    completion_GC: torch.Tensor,
    lengths: Sequence[int],
    settings: ForwardSettings,
) -> CompletionLogprobs:
    """The prompt once, its completions on the expanded cache.

    Args:
        model: Hugging Face causal LM whose cache is plain keys and values.
        prompt_P: Prompt ids, at least one.
        completion_GC: Sampled ids, right-padded with any id of the vocabulary.
        lengths: Sampled ids per row, stop token included.
        settings: Temperature, chunks, recomputation.

    Raises:
        RuntimeError: if the model drops the cache (gradient checkpointing of Transformers is on).
    """
    device_type = prompt_P.device.type

    def prompt_states(ids_1P: torch.Tensor) -> tuple[torch.Tensor, ...]:
        cache = DynamicCache()
        with _autocast(device_type, settings):
            output = _decoder(model)(input_ids=ids_1P, past_key_values=cache, use_cache=True)
        layers = cast(list[DynamicLayer], cache.layers)
        if not layers or any(layer.get_seq_length() != ids_1P.shape[1] for layer in layers):
            raise RuntimeError("the model did not fill the cache it was given: completions would not see their prompt")
        states = [state for layer in layers for state in (layer.keys, layer.values)]
        return output.last_hidden_state[:, -1], *states

    def block_states(ids_RL: torch.Tensor, *states: torch.Tensor) -> torch.Tensor:
        cache = DynamicCache()
        rows = ids_RL.shape[0]
        for layer in range(len(states) // 2):
            keys, values = (state.expand(rows, -1, -1, -1) for state in states[2 * layer : 2 * layer + 2])
            cache.update(keys, values, layer)
        with _autocast(device_type, settings):
            output = _decoder(model)(input_ids=ids_RL, past_key_values=cache, use_cache=True)
        return cast(torch.Tensor, output.last_hidden_state)

    last_1H, *states = _run(prompt_states, settings.recompute, prompt_P[None])
    # The prompt's last position predicts the first token of every row; a row's token t predicts token t + 1.
    rows = [row for row, length in enumerate(lengths) if length > 0]
    places = [(row, 0) for row in rows]
    hidden = [last_1H.expand(len(rows), -1)]
    for block in row_blocks([length - 1 for length in lengths], max_positions=_limit(settings)):
        width = lengths[block[0]] - 1
        hidden_RLH = _run(block_states, settings.recompute, completion_GC[block, :width], *states)
        kept = [(place, column) for place, row in enumerate(block) for column in range(lengths[row] - 1)]
        hidden.append(_pick(hidden_RLH, kept))
        places += [(block[place], column + 1) for place, column in kept]
    return _score(model, torch.cat(hidden), places, completion_GC, settings)


def completion_logprobs_padded(
    model: torch.nn.Module,
    prompt_P: torch.Tensor,
    completion_GC: torch.Tensor,
    lengths: Sequence[int],
    settings: ForwardSettings,
) -> CompletionLogprobs:
    """Every row as prompt + completion, without a cache. Arguments as for the shared way."""
    prompt = prompt_P.shape[0]

    def block_states(ids_RL: torch.Tensor) -> torch.Tensor:
        with _autocast(prompt_P.device.type, settings):
            output = _decoder(model)(input_ids=ids_RL, use_cache=False)
        return cast(torch.Tensor, output.last_hidden_state)

    hidden: list[torch.Tensor] = []
    places: list[tuple[int, int]] = []
    widths = [prompt + length - 1 if length else 0 for length in lengths]
    for block in row_blocks(widths, max_positions=_limit(settings)):
        ids_RL = torch.cat([prompt_P.expand(len(block), -1), completion_GC[block, : lengths[block[0]] - 1]], 1)
        hidden_RLH = _run(block_states, settings.recompute, ids_RL)
        kept = [(place, column) for place, row in enumerate(block) for column in range(lengths[row])]
        hidden.append(_pick(hidden_RLH, [(place, prompt - 1 + column) for place, column in kept]))
        places += [(block[place], column) for place, column in kept]
    return _score(model, torch.cat(hidden), places, completion_GC, settings)


def _score(
    model: torch.nn.Module,
    hidden_NH: torch.Tensor,
    places: Sequence[tuple[int, int]],
    completion_GC: torch.Tensor,
    settings: ForwardSettings,
) -> CompletionLogprobs:
    head = cast(Any, model).get_output_embeddings()
    rows_N, columns_N = torch.tensor(places, device=completion_GC.device).T
    logprob_N, entropy_N = sampled_logprobs(
        hidden_NH,
        head.weight,
        getattr(head, "bias", None),
        completion_GC[rows_N, columns_N],
        temperature=settings.temperature,
        chunk_tokens=settings.logit_chunk_tokens,
        compute_dtype=settings.autocast,
    )
    blank_GC = torch.zeros(completion_GC.shape, dtype=logprob_N.dtype, device=completion_GC.device)
    return CompletionLogprobs(
        logprobs=blank_GC.index_put((rows_N, columns_N), logprob_N),
        entropy=blank_GC.index_put((rows_N, columns_N), entropy_N),
    )


def _run(function: Callable[..., Any], recompute: bool, *inputs: torch.Tensor) -> Any:
    if not recompute:
        return function(*inputs)
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)


def _pick(hidden_RLH: torch.Tensor, kept: Sequence[tuple[int, int]]) -> torch.Tensor:
    """Positions (row, column) of a block as [N, H]; the rest is padding or prompt and needs no logits."""
    width = hidden_RLH.shape[1]
    index_N = torch.tensor([row * width + column for row, column in kept], device=hidden_RLH.device)
    return hidden_RLH.flatten(0, 1).index_select(0, index_N)


def _limit(settings: ForwardSettings) -> int | None:
    return RECOMPUTE_BLOCK_POSITIONS if settings.recompute else None


def _autocast(device_type: str, settings: ForwardSettings) -> AbstractContextManager[Any]:
    if settings.autocast is None:
        return nullcontext()
    return torch.autocast(device_type, dtype=settings.autocast)


def _decoder(model: torch.nn.Module) -> Any:
    return cast(Any, model).get_decoder()
