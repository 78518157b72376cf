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
    """The prompt once, its completions on the expanded cache, all in one graph.

    Args:
        model: Hugging Face causal LM whose cache is plain keys and values.
        prompt_P: Prompt ids, at least one.
        completion_GC: Sampled ids, right-padded with any id of the vocabulary.
        lengths: Sampled ids per row, stop token included.
        settings: Temperature, chunks, recomputation.

    Raises:
        RuntimeError: if the model drops the cache (gradient checkpointing of Transformers is on).
    """
    states = prompt_states(model, prompt_P, settings)
    parts = shared_parts(lengths, limit=_limit(settings))
    return _gather(
        [(rows, shared_logprobs(model, states, completion_GC, lengths, rows, settings)) for rows in parts],
        completion_GC,
    )


def completion_logprobs_padded(
    model: torch.nn.Module,
    prompt_P: torch.Tensor,
    completion_GC: torch.Tensor,
    lengths: Sequence[int],
    settings: ForwardSettings,
) -> CompletionLogprobs:
    """Every row as prompt + completion, without a cache. Arguments as for the shared way."""
    parts = padded_parts(prompt_P.shape[0], lengths, limit=_limit(settings))
    return _gather(
        [(rows, padded_logprobs(model, prompt_P, completion_GC, lengths, rows, settings)) for rows in parts],
        completion_GC,
    )


def shared_parts(lengths: Sequence[int], *, limit: int | None) -> list[list[int]]:
    """Rows that run together on a prompt's keys and values; the first row of a part is its longest.

    Args:
        lengths: Sampled ids per row; rows without any are left out.
        limit: Most positions of a part, unless a single row has more; none: no limit.
    """
    parts = row_blocks([length - 1 for length in lengths], max_positions=limit)
    # The prompt's last position alone predicts rows of one token: they cost nothing beyond it.
    single = [row for row, length in enumerate(lengths) if length == 1]
    if not single:
        return parts
    return [parts[0] + single, *parts[1:]] if parts else [single]


def padded_parts(prompt_tokens: int, lengths: Sequence[int], *, limit: int | None) -> list[list[int]]:
    """The same for rows of prompt + completion."""
    return row_blocks([prompt_tokens + length - 1 if length else 0 for length in lengths], max_positions=limit)


def prompt_states(
    model: torch.nn.Module, prompt_P: torch.Tensor, settings: ForwardSettings
) -> tuple[torch.Tensor, ...]:
    """Forward the prompt once.

    Returns:
        Hidden state [1, H] of its last position, then keys and values [1, heads, P, D] of each layer in turn.

    Raises:
        RuntimeError: if the model drops the cache.
    """

    def run(ids_1P: torch.Tensor) -> tuple[torch.Tensor, ...]:
        cache = DynamicCache()
        with _autocast(prompt_P.device.type, settings):
            output = _decoder(model)(input_ids=ids_1P, past_key_values=cache, use_cache=True)
        layers = cast(list[DynamicLayer], cache.layers)
        if not layers or any(layer.get_seq_length() != ids_1P.shape[1] for layer in layers):
            raise RuntimeError("the model did not fill the cache it was given: completions would not see their prompt")
        states = [state for layer in layers for state in (layer.keys, layer.values)]
        return output.last_hidden_state[:, -1], *states

    return cast(tuple[torch.Tensor, ...], _run(run, settings.recompute, prompt_P[None]))


def shared_logprobs(
    model: torch.nn.Module,
    states: Sequence[torch.Tensor],
    completion_GC: torch.Tensor,
    lengths: Sequence[int],
    rows: Sequence[int],
    settings: ForwardSettings,
) -> CompletionLogprobs:
    """Some rows, the longest first, on the states of their prompt.

    Returns:
        [R, L] for R rows, L the length of the first.
    """

    def run(ids_RL: torch.Tensor, *keys_values: torch.Tensor) -> torch.Tensor:
        cache = DynamicCache()
        for layer in range(len(keys_values) // 2):
            keys, values = (s.expand(ids_RL.shape[0], -1, -1, -1) for s in keys_values[2 * layer : 2 * layer + 2])
            cache.update(keys, values, layer)
        with _autocast(ids_RL.device.type, settings):
            output = _decoder(model)(input_ids=ids_RL, past_key_values=cache, use_cache=True)
        return cast(torch.Tensor, output.last_hidden_state)

    last_1H, *keys_values = states
    # The prompt's last position predicts the first token of every row; a row's token t predicts token t + 1.
    hidden = [last_1H.expand(len(rows), -1)]
    places = [(place, 0) for place in range(len(rows))]
    wide = [row for row in rows if lengths[row] > 1]
    if wide:
        hidden_RLH = _run(run, settings.recompute, completion_GC[wide, : lengths[wide[0]] - 1], *keys_values)
        kept = [(place, column) for place, row in enumerate(wide) for column in range(lengths[row] - 1)]
        hidden.append(_pick(hidden_RLH, kept))
        places += [(place, column + 1) for place, column in kept]
    return _score(model, torch.cat(hidden), places, completion_GC[list(rows), : lengths[rows[0]]], settings)


def padded_logprobs(
    model: torch.nn.Module,
    prompt_P: torch.Tensor,
    completion_GC: torch.Tensor,
    lengths: Sequence[int],
    rows: Sequence[int],
    settings: ForwardSettings,
) -> CompletionLogprobs:
    """Some rows, the longest first, each as prompt + completion; returns what `shared_logprobs` does."""

    def run(ids_RL: torch.Tensor) -> torch.Tensor:
        with _autocast(ids_RL.device.type, settings):
            output = _decoder(model)(input_ids=ids_RL, use_cache=False)
        return cast(torch.Tensor, output.last_hidden_state)

    completion_RC = completion_GC[list(rows), : lengths[rows[0]]]
    ids_RL = torch.cat([prompt_P.expand(len(rows), -1), completion_RC[:, :-1]], 1)
    places = [(place, column) for place, row in enumerate(rows) for column in range(lengths[row])]
    first = prompt_P.shape[0] - 1
    hidden_NH = _pick(_run(run, settings.recompute, ids_RL), [(place, first + column) for place, column in places])
    return _score(model, hidden_NH, places, completion_RC, settings)


def _gather(parts: Sequence[tuple[list[int], CompletionLogprobs]], completion_GC: torch.Tensor) -> CompletionLogprobs:
    """Parts put together, 0 where no row is."""

    def whole(pieces: list[torch.Tensor]) -> torch.Tensor:
        blank_GC = torch.zeros(completion_GC.shape, dtype=pieces[0].dtype, device=completion_GC.device)
        for (rows, _), piece_RL in zip(parts, pieces, strict=True):
            rows_R1 = torch.tensor(rows, device=completion_GC.device)[:, None]
            columns_L = torch.arange(piece_RL.shape[1], device=completion_GC.device)
            blank_GC = blank_GC.index_put((rows_R1, columns_L), piece_RL)
        return blank_GC

    return CompletionLogprobs(
        logprobs=whole([part.logprobs for _, part in parts]), entropy=whole([part.entropy for _, part in parts])
    )


def _score(
    model: torch.nn.Module,
    hidden_NH: torch.Tensor,
    places: Sequence[tuple[int, int]],
    completion_RL: torch.Tensor,
    settings: ForwardSettings,
) -> CompletionLogprobs:
    head = cast(Any, model).get_output_embeddings()
    rows_N, columns_N = torch.tensor(places, device=completion_RL.device).T
    logprob_N, entropy_N = sampled_logprobs(
        hidden_NH,
        head.weight,
        getattr(head, "bias", None),
        completion_RL[rows_N, columns_N],
        temperature=settings.temperature,
        chunk_tokens=settings.logit_chunk_tokens,
        compute_dtype=settings.autocast,
    )
    blank_RL = torch.zeros(completion_RL.shape, dtype=logprob_N.dtype, device=completion_RL.device)
    return CompletionLogprobs(
        logprobs=blank_RL.index_put((rows_N, columns_N), logprob_N),
        entropy=blank_RL.index_put((rows_N, columns_N), entropy_N),
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
