"""Summaries of documents by a trained policy: the prompts of its training, sampled by the reference engine."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tersely.config.schema import DataSection
from tersely.data.prompts import prepare_prompt
from tersely.data.records import Record
from tersely.errors import ConfigValue
from tersely.grpo.seeds import group_seed
from tersely.models.load import load_policy
from tersely.models.tokenizer import PolicyTokenizer
from tersely.rollout.engines import EngineSettings, generate, open_engine
from tersely.types import PolicyVersion, WeightsLabel
from tersely.v1 import common_pb2, group_pb2


@dataclass(frozen=True, slots=True)
class Summary:
    """One summary.

    Attributes:
        document: Name of its document.
        sample: Counts the summaries of a document from 0.
        text: Without special tokens.
        tokens: Sampled ids without the stop token; all of them if it was cut off.
        target_tokens: Length asked for.
        stopped: Whether it ended by itself, and not at the limit.
        document_tokens_cut: Tokens of the document that did not fit, as in training; 0 when it is whole.
        seconds: For all samples of the document.
    """

    document: str
    sample: int
    text: str
    tokens: int
    target_tokens: int
    stopped: bool
    document_tokens_cut: int
    seconds: float


def run_summarize(
    model_folder: Path,
    documents: Sequence[tuple[str, str]],
    data: DataSection,
    *,
    target_tokens: int,
    max_completion_tokens: int,
    temperature: float = 0.0,
    samples: int = 1,
    seed: int = 0,
    threads: int | None = None,
) -> Iterator[Summary]:
    """Summarises documents one after the other; a document's summaries do not depend on those beside it.

    Args:
        model_folder: Policy with tokenizer.
        documents: Name and text of each, none blank.
        data: Prompt texts and the limit for documents.
        target_tokens: Length to ask for.
        max_completion_tokens: Most sampled tokens.
        temperature: Divides the logits; 0 takes the likeliest token each time.
        samples: Summaries per document.
        seed: Of the sampling.
        threads: CPU threads; none: all cores.

    Raises:
        ModelInvalid, ModelTokenizerMissing: The folder can't be used.
        EngineFailed: The engine can't run this model.
        ConfigValue: Prompt and summary together are longer than the model's context.
    """
    tokenizer = PolicyTokenizer.from_folder(model_folder)
    prompts = [prepare_prompt(Record(name, text, ""), tokenizer, data, target_tokens) for name, text in documents]
    _check_context(model_folder, max((len(prompt.token_ids) for prompt in prompts), default=0), max_completion_tokens)
    label = WeightsLabel(PolicyVersion(0), "")
    engine = open_engine("torch", EngineSettings(threads=threads, batch_sequences=1))
    engine.load(model_folder, label, dict(load_policy(model_folder).named_parameters()))
    for (name, text), prompt in zip(documents, prompts, strict=True):
        group = group_pb2.PromptGroup(
            group_id=name,
            prompt_id=name,
            prompt_token_ids=prompt.token_ids,
            group_size=samples,
            stop_token_ids=tokenizer.stop_token_ids,
            purpose=common_pb2.GROUP_PURPOSE_EVALUATION,
        )
        group.sampling.max_completion_tokens = max_completion_tokens
        group.sampling.greedy_samples = samples if temperature == 0 else 0
        group.sampling.temperature = temperature or 1.0
        group.sampling.seed = group_seed(seed, 0, hashlib.sha256(text.encode()).hexdigest())
        began = time.monotonic()
        for done in generate(engine, [group]):
            for completion in done.completions:
                stopped = completion.finish_reason == common_pb2.FINISH_REASON_STOP
                yield Summary(
                    document=name,
                    sample=completion.sample_index,
                    text=tokenizer.decode(completion.token_ids).strip(),
                    tokens=len(completion.token_ids) - stopped,
                    target_tokens=target_tokens,
                    stopped=stopped,
                    document_tokens_cut=prompt.document_tokens_cut,
                    seconds=time.monotonic() - began,
                )


def _check_context(model_folder: Path, longest_prompt: int, max_completion_tokens: int) -> None:
    context = json.loads((model_folder / "config.json").read_text(encoding="utf-8")).get("max_position_embeddings")
    if not isinstance(context, int) or longest_prompt + max_completion_tokens <= context:
        return
    # A summary may take twice the length that is asked for.
    room = (context - longest_prompt) // 2
    raise ConfigValue(
        f"--tokens: summaries of up to {max_completion_tokens} tokens and a prompt of {longest_prompt} are longer than"
        f" the model's context of {context} tokens.",
        f"Ask for {room} tokens or fewer." if room >= 32 else "Choose a model with a longer context.",
    )
