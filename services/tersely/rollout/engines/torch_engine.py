"""The reference engine: any Hugging Face causal LM with full attention, on the CPU, CUDA or MPS, in plain PyTorch.

A group's prompt is prefilled once, as one row at its own length; its keys and values are then repeated for the samples.
A training group of a synchronous run is a batch of its own, so every product has the shape it would have anywhere else
and the tokens and logprobs come out the same bit for bit. Other groups are decoded together.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache
from transformers.initialization import no_init_weights

from tersely.errors import EngineFailed
from tersely.grpo.seeds import uniform
from tersely.models.device import choose_device, set_threads
from tersely.models.linear import use_fast_linears
from tersely.rollout.engines.base import Capabilities, EngineSettings, GeneratedGroup, plan_batches
from tersely.rollout.engines.in_place import fill
from tersely.rollout.engines.kv_cache import PromptState, RowCache
from tersely.rollout.engines.linear import use_few_rows_linear
from tersely.rollout.engines.sampling import sample
from tersely.types import WeightsLabel
from tersely.v1 import common_pb2, group_pb2


@dataclass(slots=True)
class _Row:
    """One sample on its way."""

    prompt: group_pb2.PromptGroup
    sample_index: int
    stop_ids: frozenset[int]
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    stopped: bool = False

    @property
    def ended(self) -> bool:
        return self.stopped or len(self.ids) >= self.prompt.sampling.max_completion_tokens

    def next_uniform(self) -> float | None:
        sampling = self.prompt.sampling
        if self.sample_index < sampling.greedy_samples:
            return None
        return uniform(sampling.seed, self.sample_index, len(self.ids))

    def take(self, token: int, logprob: float) -> None:
        self.ids.append(token)
        self.logprobs.append(logprob)
        self.stopped = token in self.stop_ids

    def completion(self, label: WeightsLabel) -> group_pb2.Completion:
        reason = common_pb2.FINISH_REASON_STOP if self.stopped else common_pb2.FINISH_REASON_LENGTH
        span = group_pb2.VersionSpan(weights=label.to_proto(), first_token=0, token_count=len(self.ids))
        return group_pb2.Completion(
            sample_index=self.sample_index,
            token_ids=self.ids,
            behaviour_logprobs=self.logprobs,
            finish_reason=reason,
            version_spans=[span],
        )


class TorchEngine:
    """Samples with PyTorch; fp32 on the CPU, bf16 on CUDA and MPS.

    Args:
        settings: Device, threads, and rows decoded together.
        dtype: Arithmetic, when not the device's default (float64 serves tests).
    """

    def __init__(self, settings: EngineSettings, dtype: torch.dtype | None = None) -> None:
        self._settings = settings
        self._device = choose_device(settings.device, "rollout.device")
        self._dtype = dtype or (torch.float32 if self._device.type == "cpu" else torch.bfloat16)
        self._threads = set_threads(settings.threads)
        self._model: Any = None
        self._label: WeightsLabel | None = None

    @property
    def label(self) -> WeightsLabel | None:
        """Label of the weights held; none before `load`."""
        return self._label

    def capabilities(self) -> Capabilities:
        """What this engine can do."""
        return Capabilities(
            name="torch",
            device=str(self._device),
            threads=self._threads,
            bit_exact=self._device.type == "cpu",
            batch_sequences=self._settings.batch_sequences,
        )

    def load(self, model_folder: Path, label: WeightsLabel, weights: Mapping[str, Tensor]) -> None:
        """Builds the model from config.json alone and fills it.

        Raises:
            EngineFailed: The config can't be used, or the weights do not fit it.
        """
        try:
            config = AutoConfig.from_pretrained(model_folder, trust_remote_code=False)
            with no_init_weights():
                model: Any = AutoModelForCausalLM.from_config(config, dtype=self._dtype, attn_implementation="sdpa")  # type: ignore[no-untyped-call]
        except (OSError, ValueError, ImportError, KeyError) as error:
            raise EngineFailed(f"No model fits {model_folder}: {error}", "Check the run's model.") from error
        kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
        if kinds != {"full_attention"}:
            raise EngineFailed(
                f"The torch engine needs full attention in all layers; {config.model_type} has {sorted(kinds)}.",
                "Use a Llama- or Qwen2-like model.",
            )
        model.tie_weights()
        model.eval().requires_grad_(False).to(self._device)
        fill(model, weights)
        if self._device.type == "cpu" and not use_fast_linears(model):
            use_few_rows_linear(model)
        self._model, self._label = model, label

    def swap(self, label: WeightsLabel, weights: Mapping[str, Tensor]) -> None:
        """Puts other weights of the same model in place; on failure the old ones stay whole.

        Raises:
            EngineFailed: Nothing is loaded yet, or the weights do not fit the model.
        """
        if self._model is None:
            raise EngineFailed("No model is loaded whose weights could be swapped.", "Load one first.")
        fill(self._model, weights)
        self._label = label

    def generate(
        self, groups: Sequence[group_pb2.PromptGroup], cancelled: Callable[[], bool]
    ) -> Iterator[GeneratedGroup]:
        """Yields each group when its last completion ends; stops early, between two tokens, once `cancelled()`.

        Raises:
            EngineFailed: Nothing is loaded, a prompt is empty, or the logits are not finite.
        """
        if self._model is None or self._label is None:
            raise EngineFailed("No model is loaded to generate with.", "Load one first.")
        for batch in plan_batches(groups, self._settings.batch_sequences):
            if cancelled():
                return
            yield from self._decode(batch, self._label, cancelled)

    @torch.inference_mode()
    def _decode(
        self, groups: list[group_pb2.PromptGroup], label: WeightsLabel, cancelled: Callable[[], bool]
    ) -> Iterator[GeneratedGroup]:
        started = time.perf_counter()
        prompts = []
        for group in groups:
            if cancelled():
                return
            prompts.append(self._prefill(group))
        sizes = [group.group_size for group in groups]
        cache = RowCache(prompts, sizes, room=max(group.sampling.max_completion_tokens for group in groups))
        logits_RV = torch.cat([p.logits.expand(n, -1) for p, n in zip(prompts, sizes, strict=True)])
        prompt_lengths = [prompt.length for prompt, size in zip(prompts, sizes, strict=True) for _ in range(size)]
        del prompts
        rows = [_Row(g, i, frozenset(g.stop_token_ids)) for g in groups for i in range(g.group_size)]
        of_group = {id(group): [row for row in rows if row.prompt is group] for group in groups}
        while True:
            drawn = sample(logits_RV, [r.prompt.sampling.temperature for r in rows], [r.next_uniform() for r in rows])
            for row, token, logprob in zip(rows, drawn.ids, drawn.logprobs, strict=True):
                row.take(token, logprob)
            for index in range(len(rows) - 1, -1, -1):
                if rows[index].ended:
                    cache.drop_row(index)
                    rows[index], prompt_lengths[index] = rows[-1], prompt_lengths[-1]
                    rows.pop()
                    prompt_lengths.pop()
            for key, members in list(of_group.items()):
                if all(row.ended for row in members):
                    del of_group[key]
                    completions = tuple(row.completion(label) for row in members)
                    yield GeneratedGroup(members[0].prompt, completions, time.perf_counter() - started)
            if not rows or cancelled():
                return
            logits_RV = self._step(rows, prompt_lengths, cache)

    def _prefill(self, group: group_pb2.PromptGroup) -> PromptState:
        if not group.prompt_token_ids or group.group_size < 1 or group.sampling.max_completion_tokens < 1:
            raise EngineFailed(f"Group {group.group_id} has no prompt, no samples or no room for tokens.")
        ids_1P = torch.tensor([list(group.prompt_token_ids)], device=self._device)
        cache = DynamicCache(config=self._model.config)
        output = self._model(input_ids=ids_1P, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return PromptState(cache, output.logits[:, -1])

    def _step(self, rows: list[_Row], prompt_lengths: list[int], cache: RowCache) -> Tensor:
        places = [length + len(row.ids) - 1 for row, length in zip(rows, prompt_lengths, strict=True)]
        output = self._model(
            input_ids=torch.tensor([row.ids[-1:] for row in rows], device=self._device),
            attention_mask=cache.step_mask(len(rows)),
            position_ids=torch.tensor(places, device=self._device).unsqueeze(1),
            past_key_values=cache,
            use_cache=True,
        )
        logits_RV: Tensor = output.logits[:, -1]
        return logits_RV
