"""Forward passes over a few tokens: which way is right for a model, and what its weights say for workers to compare."""

from __future__ import annotations

from typing import Any, cast

import structlog
import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from tersely.errors import ModelInvalid
from tersely.trainer.forward import (
    Forward,
    ForwardSettings,
    completion_logprobs_padded,
    completion_logprobs_shared,
)
from tersely.weights.probe import Probe, probe_ids

log = structlog.get_logger()

TOLERANCE = 2e-3
"""Most difference of log-probabilities, nats, between ways of computing the same thing in fp32."""


@torch.no_grad()
def choose_forward(model: torch.nn.Module, *, shared_prompt: bool) -> Forward:
    """The shared-prompt forward where the model's cache is plain keys and values, else the padded one, said in the log.

    Args:
        model: Hugging Face causal LM in eval mode, fp32.
        shared_prompt: False: the padded way is wanted anyhow.

    Raises:
        ModelInvalid: if the model's own log-probabilities differ from those made from hidden states and output head
            (some models scale or cap their logits).
    """
    device = next(model.parameters()).device
    vocabulary = cast(Any, model).get_output_embeddings().weight.shape[0]
    ids = torch.arange(3, 19, device=device) % vocabulary
    prompt_P, completion_GC, lengths = ids[:6], ids[6:14].view(2, 4), (4, 3)
    settings = ForwardSettings()
    padded = completion_logprobs_padded(model, prompt_P, completion_GC, lengths, settings).logprobs

    row = cast(Any, model)(input_ids=ids[None, :10], use_cache=False).logits[0, 5:9].float().log_softmax(-1)
    own = row.gather(-1, completion_GC[0][:, None])[:, 0]
    if not torch.allclose(padded[0], own.to(padded.dtype), rtol=0, atol=TOLERANCE):
        raise ModelInvalid(
            f"{type(model).__name__} scales or caps its logits in a way that the learner does not follow.",
            "Choose a model whose logits are its output head applied to the last hidden state.",
        )
    if not shared_prompt:
        return completion_logprobs_padded
    why = why_not_shared(model, cast(Any, model).config)
    if why is None:
        shared = completion_logprobs_shared(model, prompt_P, completion_GC, lengths, settings).logprobs
        if torch.allclose(padded, shared, rtol=0, atol=TOLERANCE):
            return completion_logprobs_shared
        why = "its cached and uncached results differ"
    log.warning(
        "padded_forward", model=type(model).__name__, reason=why, effect="prompts are forwarded once per sample"
    )
    return completion_logprobs_padded


@torch.no_grad()
def probe_logprobs(model: torch.nn.Module) -> Probe:
    """Log-probabilities of the probe's tokens by the weights that run, in the weights' own arithmetic (fp32).

    Args:
        model: Hugging Face causal LM in eval mode.
    """
    head = cast(Any, model).get_output_embeddings().weight
    ids = torch.tensor(probe_ids(head.shape[0]), device=head.device)
    settings = ForwardSettings()
    result = completion_logprobs_padded(model, ids[:1], ids[None, 1:], (len(ids) - 1,), settings)
    return Probe(ids.tolist(), result.logprobs[0].tolist())


def why_not_shared(model: Any, config: Any) -> str | None:
    """What a model's class and config say against the shared-prompt forward; None: nothing.

    Args:
        model: The model, or its class.
        config: Its config.
    """
    if getattr(model, "_is_stateful", False):
        return "it keeps state other than keys and values"
    layers = DynamicCache(config=config).layers
    other = sorted({type(layer).__name__ for layer in layers if type(layer) is not DynamicLayer})
    return f"its cache has layers of type {', '.join(other)}" if other else None
