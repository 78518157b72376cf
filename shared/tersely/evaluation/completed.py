"""Completions of held-out prompts, as a model made them and before anything is measured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Completed:
    """One completion.

    Attributes:
        text: Without special tokens.
        tokens: Sampled ids without the stop token; all of them if it was cut off.
        stopped: Whether it ended by itself, and not at the limit.
        cut_text: The text of its first `target_tokens` tokens; all of it if it is no longer.
        cut_tokens: How many those are.
    """

    text: str
    tokens: int
    stopped: bool
    cut_text: str
    cut_tokens: int


@dataclass(frozen=True, slots=True)
class CompletedPrompt:
    """A prompt and its completions.

    Attributes:
        id: The record's.
        target_tokens: Length asked for.
        document: The source as the model saw it, after the cut.
        document_tokens_cut: Tokens of it that did not fit.
        reference: Human summary; empty when there is none.
        greedy: The likeliest token each time.
        sampled: In order of the sample's number, from 1.
        lead: The document's first sentences, as many as come nearest to the target, by the same tokenizer.
        lead_tokens: Their length.
    """

    id: str
    target_tokens: int
    document: str
    document_tokens_cut: int
    reference: str
    greedy: Completed
    sampled: tuple[Completed, ...]
    lead: str
    lead_tokens: int


@dataclass(frozen=True, slots=True)
class CompletedSet:
    """What a model made of all prompts, in their order.

    Attributes:
        prompts: See `CompletedPrompt`.
        weights_sha256: Hash of the weights that generated, computed from them.
        engine: Name, device, dtype, threads and batch of the engine.
    """

    prompts: tuple[CompletedPrompt, ...]
    weights_sha256: str
    engine: dict[str, str | int]
