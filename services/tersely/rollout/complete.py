"""Completions of held-out prompts by one pinned model, for `tersely evaluate`: greedy and sampled, with their lengths.

Every token is fixed by (seed, prompt, sample, position), as in training: two models that are given the same prompts and
the same seed meet the same random numbers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tersely.config.schema import DataSection
from tersely.data.prompts import PreparedPrompt, prepare_prompt
from tersely.data.records import Record
from tersely.data.sentences import lead_sentences
from tersely.errors import ConfigValue
from tersely.evaluation.completed import Completed, CompletedPrompt, CompletedSet
from tersely.grpo.seeds import group_seed
from tersely.models.load import load_policy
from tersely.models.tokenizer import PolicyTokenizer
from tersely.rollout.engines import EngineSettings, generate, open_engine
from tersely.types import PolicyVersion, WeightsLabel
from tersely.v1 import common_pb2, group_pb2
from tersely.weights.digest import TensorHash, tensor_sha256, weights_sha256

if TYPE_CHECKING:
    from torch import Tensor


def run_complete(
    model_folder: Path,
    records: Sequence[Record],
    targets: Sequence[int],
    data: DataSection,
    *,
    max_completion_tokens: int,
    samples: int = 1,
    temperature: float = 1.0,
    seed: int = 0,
    engine: str = "torch",
    device: str = "auto",
    threads: int | None = None,
    batch_sequences: int = 16,
    on_done: Callable[[int], None] = lambda done: None,
) -> CompletedSet:
    """Completes each record's prompt once greedily and `samples` times by sampling.

    Args:
        model_folder: Policy with tokenizer.
        records: Documents and references.
        targets: Length to ask for, one per record.
        data: Prompt texts and the limit for documents.
        max_completion_tokens: Most sampled tokens, for all the same.
        samples: Sampled completions per prompt.
        temperature: Of the sampling.
        seed: Of the sampling; a prompt's numbers depend on it and on the record's id.
        engine: Name of a rollout engine.
        device: For the engine.
        threads: CPU threads; none: all cores.
        batch_sequences: Most sequences decoded together; rounding may depend on it, nothing else does.
        on_done: Called with the number of prompts that are done.

    Raises:
        ModelInvalid, ModelTokenizerMissing: The folder can't be used.
        EngineFailed: The engine can't run this model.
        ConfigValue: A prompt and its completion are longer than the model's context.
    """
    tokenizer = PolicyTokenizer.from_folder(model_folder)
    prompts = [prepare_prompt(record, tokenizer, data, target) for record, target in zip(records, targets, strict=True)]
    _check_context(model_folder, max((len(p.token_ids) for p in prompts), default=0), max_completion_tokens)
    groups = [_group(p, tokenizer, max_completion_tokens, samples, temperature, seed) for p in prompts]
    weights: dict[str, Tensor] = dict(load_policy(model_folder).named_parameters())
    label = WeightsLabel(PolicyVersion(0), _hash(weights))
    runner = open_engine(
        engine, EngineSettings(device=device, threads=threads, batch_sequences=max(batch_sequences, 1 + samples))
    )
    runner.load(model_folder, label, weights)
    found: dict[str, tuple[Completed, ...]] = {}
    for group in generate(runner, groups):
        target = group.prompt.target_tokens
        found[group.prompt.group_id] = tuple(_completed(c, tokenizer, target) for c in group.completions)
        on_done(len(found))
    can = runner.capabilities()
    return CompletedSet(
        tuple(_prompt(p, found[p.prompt_id], tokenizer) for p in prompts),
        label.weights_sha256,
        {
            "name": can.name,
            "device": can.device,
            "dtype": can.dtype,
            "threads": can.threads,
            "batch_sequences": can.batch_sequences,
        },
    )


def _group(
    prompt: PreparedPrompt, tokenizer: PolicyTokenizer, limit: int, samples: int, temperature: float, seed: int
) -> group_pb2.PromptGroup:
    group = group_pb2.PromptGroup(
        group_id=prompt.prompt_id,
        prompt_id=prompt.prompt_id,
        prompt_token_ids=prompt.token_ids,
        group_size=1 + samples,
        stop_token_ids=tokenizer.stop_token_ids,
        target_tokens=prompt.target_tokens,
        purpose=common_pb2.GROUP_PURPOSE_EVALUATION,
    )
    group.sampling.max_completion_tokens = limit
    group.sampling.greedy_samples = 1
    group.sampling.temperature = temperature
    group.sampling.seed = group_seed(seed, 0, prompt.prompt_id)
    return group


def _completed(completion: group_pb2.Completion, tokenizer: PolicyTokenizer, target: int) -> Completed:
    stopped = completion.finish_reason == common_pb2.FINISH_REASON_STOP
    ids = list(completion.token_ids)[: len(completion.token_ids) - stopped]
    text = tokenizer.decode(ids).strip()
    cut = text if len(ids) <= target else tokenizer.decode(ids[:target]).rstrip("\ufffd").strip()
    return Completed(text, len(ids), stopped, cut, min(len(ids), target))


def _prompt(prompt: PreparedPrompt, completions: tuple[Completed, ...], tokenizer: PolicyTokenizer) -> CompletedPrompt:
    lead, lead_tokens = lead_sentences(prompt.document, tokenizer, prompt.target_tokens)
    return CompletedPrompt(
        id=prompt.prompt_id,
        target_tokens=prompt.target_tokens,
        document=prompt.document,
        document_tokens_cut=prompt.document_tokens_cut,
        reference=prompt.reference,
        greedy=completions[0],
        sampled=completions[1:],
        lead=lead,
        lead_tokens=lead_tokens,
    )


def _hash(weights: Mapping[str, Tensor]) -> str:
    """Hash of the weights, as the trainer's labels have it: of bf16 where nothing is lost by that, else of fp32."""
    import torch

    as_bf16 = all(bool((tensor.to(torch.bfloat16).to(tensor.dtype) == tensor).all()) for tensor in weights.values())
    dtype, name = (torch.bfloat16, "BF16") if as_bf16 else (torch.float32, "F32")
    return weights_sha256(
        TensorHash(
            key,
            name,
            tuple(tensor.shape),
            tensor_sha256(tensor.detach().to(dtype).contiguous().view(-1).view(torch.uint8).numpy().data),
        )
        for key, tensor in weights.items()
    )


def _check_context(model_folder: Path, longest_prompt: int, max_completion_tokens: int) -> None:
    context = json.loads((model_folder / "config.json").read_text(encoding="utf-8")).get("max_position_embeddings")
    if isinstance(context, int) and longest_prompt + max_completion_tokens > context:
        raise ConfigValue(
            f"A prompt of {longest_prompt} tokens and completions of up to {max_completion_tokens} are longer than the"
            f" model's context of {context} tokens.",
            "Cut documents shorter with --max-document-tokens, or ask for a smaller --target-tokens.",
        )
