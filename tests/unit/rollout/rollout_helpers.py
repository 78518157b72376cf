"""What the rollout tests share; conftest.py puts this folder on the path."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from tersely.rollout.engines.base import Engine
from tersely.types import PolicyVersion, WeightsLabel
from tersely.v1 import common_pb2, group_pb2

Weights = dict[str, torch.Tensor]
LABEL = WeightsLabel(PolicyVersion(3), "aa" * 32)
STOP = 5


def tiny_config(vocab: int = 97, tied: bool = True) -> LlamaConfig:
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
    torch.manual_seed(seed)
    state = AutoModelForCausalLM.from_config(config, dtype=torch.float32).state_dict()
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


def run(engine: Engine, *groups: group_pb2.PromptGroup) -> dict[str, list[tuple[list[int], list[float]]]]:
    return {
        done.prompt.group_id: [(list(c.token_ids), list(c.behaviour_logprobs)) for c in done.completions]
        for done in engine.generate(groups, lambda: False)
    }
