"""What tests of an engine need: a small model with random weights, prompt groups, and one call that collects."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Protocol

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from tersely.types import PolicyVersion, WeightsLabel
from tersely.v1 import common_pb2, group_pb2

Weights = dict[str, torch.Tensor]
LABEL = WeightsLabel(PolicyVersion(3), "aa" * 32)
"""A label for weights that nobody published."""
STOP = 5
"""The stop token of groups made here."""


class Generated(Protocol):
    """A finished group, as engines yield it."""

    @property
    def prompt(self) -> group_pb2.PromptGroup:
        """The group as it was asked for."""

    @property
    def completions(self) -> Sequence[group_pb2.Completion]:
        """Its completions in order of sample_index."""


class Generates(Protocol):
    """The part of an engine that `run` calls; `tersely.rollout.engines.Engine` has it."""

    @property
    def running(self) -> int:
        """Groups admitted and not yet finished."""

    def has_room(self, group: group_pb2.PromptGroup) -> bool:
        """Whether `admit` may be called for it now."""

    def admit(self, group: group_pb2.PromptGroup) -> None:
        """Takes a group in."""

    def step(self) -> Sequence[Generated]:
        """A token for every running sequence; the groups that ended."""

    def cancel(self, group_id: str) -> None:
        """Forgets a running group."""


def tiny_config(vocab: int = 97, tied: bool = True) -> LlamaConfig:
    """A Llama of two layers; its initial weights are large, so that no distribution is flat."""
    return LlamaConfig(
        vocab_size=vocab,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=tied,
        initializer_range=0.3,
    )


def random_weights(config: LlamaConfig, seed: int, dtype: torch.dtype = torch.bfloat16) -> Weights:
    """Weights as they are published: rounded to bf16, tied tensors once, sorted names; then cast to `dtype`."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
    state = model.state_dict()
    if config.tie_word_embeddings:
        del state["lm_head.weight"]
    return {name: tensor.to(torch.bfloat16).to(dtype) for name, tensor in sorted(state.items())}


def group(
    prompt: list[int],
    *,
    size: int = 4,
    limit: int = 12,
    seed: int = 11,
    temperature: float = 1.0,
    greedy: int = 0,
    exact: bool = False,
    stop: tuple[int, ...] = (STOP,),
    name: str = "g",
) -> group_pb2.PromptGroup:
    """A prompt group.

    Args:
        prompt: Prompt ids.
        size: Completions.
        limit: Most sampled ids per completion.
        seed: Sampling seed of the group.
        temperature: Divides the logits.
        greedy: The first so many completions take the likeliest token.
        exact: A training group that requires the weights `LABEL`, as in a synchronous run; else an evaluation group.
        stop: Ids that end a completion.
        name: Group id and prompt id.
    """
    made = group_pb2.PromptGroup(
        run_id="r", group_id=name, prompt_id=name, group_size=size, prompt_token_ids=prompt, stop_token_ids=stop
    )
    made.purpose = common_pb2.GROUP_PURPOSE_TRAINING if exact else common_pb2.GROUP_PURPOSE_EVALUATION
    made.target_tokens = 6
    made.sampling.temperature = temperature
    made.sampling.max_completion_tokens = limit
    made.sampling.seed = seed
    made.sampling.greedy_samples = greedy
    if exact:
        made.required_weights.CopyFrom(LABEL.to_proto())
    return made


def run(engine: Generates, *groups: group_pb2.PromptGroup) -> dict[str, list[tuple[list[int], list[float]]]]:
    """Generates groups, admitted in order as room frees; per group id, the ids and logprobs of each completion."""
    waiting, finished = deque(groups), {}
    try:
        while waiting or engine.running:
            while waiting and engine.has_room(waiting[0]):
                engine.admit(waiting.popleft())
            for done in engine.step():
                completions = [(list(c.token_ids), list(c.behaviour_logprobs)) for c in done.completions]
                finished[done.prompt.group_id] = completions
    finally:
        for one in groups:
            engine.cancel(one.group_id)
    return finished
