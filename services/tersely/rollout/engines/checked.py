"""Proof, at load, that a model computed our way is the library's model."""

from __future__ import annotations

import torch

from tersely.errors import EngineFailed
from tersely.rollout.engines.attention import CausalAttend, RowsAttend
from tersely.rollout.engines.batch import ForwardPass
from tersely.rollout.engines.kv_cache import SlotBuffer
from tersely.rollout.engines.library_model import LibraryModel

_PROMPT_TOKENS = 6
_ROW_TOKENS = 3
_TOLERANCES = {torch.float32: 1e-3, torch.float64: 1e-4}
_HALF_TOLERANCE = 0.2
"""Of the mean over likely tokens; in half precision two right orders of summing differ by more on single ones."""


def check_against_library(model: ForwardPass, library: LibraryModel) -> None:
    """Compares the logits of a short text, fed as a prompt and then as a row, with the library's own forward pass.

    Raises:
        EngineFailed: They differ by more than rounding: the model has something that the engine does not compute.
    """
    shape = model.shape
    vocabulary = int(library.module.config.vocab_size)
    tokens = _PROMPT_TOKENS + _ROW_TOKENS
    ids_N = torch.arange(1, tokens + 1, device=shape.device) * 7919 % vocabulary
    positions_N = torch.arange(tokens, device=shape.device)
    prompts, rows = SlotBuffer(shape), SlotBuffer(shape)
    prompts.make(1, _PROMPT_TOKENS)
    rows.make(1, _ROW_TOKENS)
    try:
        want_NV = library.own_logits(ids_N)
        head = slice(0, _PROMPT_TOKENS)
        got_NV = model.logits(ids_N[head], positions_N[head], CausalAttend(prompts))
        tail = slice(_PROMPT_TOKENS, tokens)
        attend = RowsAttend(prompts, rows, [_PROMPT_TOKENS], [0], [0], [_ROW_TOKENS])
        got_NV = torch.cat((got_NV, model.logits(ids_N[tail], positions_N[tail], attend)))
    except (RuntimeError, AttributeError, KeyError, TypeError) as error:
        raise EngineFailed(
            f"The torch engine can't run this {library.module.config.model_type} model: {error}",
            "Use a Llama- or Qwen2-like model.",
        ) from error
    if not bool(torch.isfinite(want_NV).all()):
        return  # Generation will say so.
    want_NV, got_NV = torch.log_softmax(want_NV.double(), -1), torch.log_softmax(got_NV.double(), -1)
    likely = want_NV > want_NV.amax(-1, keepdim=True) - 10
    differences = (want_NV - got_NV)[likely].abs()
    difference = float(differences.max() if shape.dtype in _TOLERANCES else differences.mean())
    if not difference <= _TOLERANCES.get(shape.dtype, _HALF_TOLERANCE):
        raise EngineFailed(
            f"The torch engine computes this {library.module.config.model_type} model differently than transformers"
            f" does: logprobs are off by {difference:.2g} nats.",
            "Use a Llama- or Qwen2-like model.",
        )
