"""The reference engine: any Hugging Face causal LM with full attention, on the CPU, CUDA or MPS, in plain PyTorch.

A group's prompt is prefilled once, as one row at its own length; its keys and values are then repeated for the samples.
A training group of a synchronous run is a batch of its own, so every product has the shape it would have anywhere else
and the tokens and logprobs come out the same bit for bit. Other groups are decoded together.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
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
from tersely.rollout.engines.base import Capabilities, EngineSettings, GeneratedGroup, is_bit_exact
from tersely.rollout.engines.in_place import fill
from tersely.rollout.engines.kv_cache import PromptState, RowCache
from tersely.rollout.engines.linear import use_few_rows_linear
from tersely.rollout.engines.sampling import sample
from tersely.types import WeightsLabel
from tersely.v1 import common_pb2, group_pb2


def tokens_held(group: group_pb2.PromptGroup) -> int:
    """Tokens that a group may hold keys and values of: its prompt once, and every sample's limit."""
    return len(group.prompt_token_ids) + group.group_size * group.sampling.max_completion_tokens


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


@dataclass(slots=True)
class _Batch:
    """A group on its way: its rows, those of them that have not ended, and the logits that are not yet drawn from."""

    group: group_pb2.PromptGroup
    started: float
    prompt_length: int
    cache: RowCache
    logits: Tensor | None
    rows: list[_Row]
    live: list[_Row]


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
        self._batches: dict[str, _Batch] = {}

    @property
    def running(self) -> int:
        """Groups admitted and not yet finished or cancelled."""
        return len(self._batches)

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
            dtype=str(self._dtype).removeprefix("torch."),
            logprob_tolerance=1e-5 if self._dtype in (torch.float32, torch.float64) else 0.1,
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
            EngineFailed: Nothing is loaded yet, groups are running, or the weights do not fit the model.
        """
        if self._batches:
            raise EngineFailed("Weights are swapped when no group runs.", "Finish the groups first.")
        if self._model is None:
            raise EngineFailed("No model is loaded whose weights could be swapped.", "Load one first.")
        fill(self._model, weights)
        self._label = label

    def has_room(self, group: group_pb2.PromptGroup) -> bool:
        """Whether `admit` may be called for it now; always true when nothing runs."""
        if not self._batches:
            return True
        if is_bit_exact(group) or any(is_bit_exact(batch.group) for batch in self._batches.values()):
            return False
        rows = sum(batch.group.group_size for batch in self._batches.values()) + group.group_size
        tokens = sum(tokens_held(batch.group) for batch in self._batches.values()) + tokens_held(group)
        most = self._settings.batch_tokens
        return rows <= self._settings.batch_sequences and (most is None or tokens <= most)

    @torch.inference_mode()
    def admit(self, group: group_pb2.PromptGroup) -> None:
        """Takes a group in and prefills its prompt once.

        Raises:
            EngineFailed: Nothing is loaded, the group runs already, or it is empty.
        """
        if self._model is None:
            raise EngineFailed("No model is loaded to generate with.", "Load one first.")
        if group.group_id in self._batches:
            raise EngineFailed(f"Group {group.group_id} runs already.", "Give every group an id of its own.")
        started = time.perf_counter()
        prompt = self._prefill(group)
        rows = [_Row(group, index, frozenset(group.stop_token_ids)) for index in range(group.group_size)]
        cache = RowCache([prompt], [group.group_size], room=group.sampling.max_completion_tokens)
        logits_RV = prompt.logits.expand(group.group_size, -1)
        self._batches[group.group_id] = _Batch(group, started, prompt.length, cache, logits_RV, rows, list(rows))

    @torch.inference_mode()
    def step(self) -> list[GeneratedGroup]:
        """One token for every running sequence; the groups whose last one ended.

        Raises:
            EngineFailed: Nothing is loaded, or the logits are not finite.
        """
        if self._label is None:
            raise EngineFailed("No model is loaded to generate with.", "Load one first.")
        done = []
        for batch in list(self._batches.values()):
            self._decode(batch)
            if not batch.live:
                del self._batches[batch.group.group_id]
                completions = tuple(row.completion(self._label) for row in batch.rows)
                done.append(GeneratedGroup(batch.group, completions, time.perf_counter() - batch.started))
        return done

    def cancel(self, group_id: str) -> None:
        """Forgets a running group at once; an unknown one is left alone."""
        self._batches.pop(group_id, None)

    @torch.inference_mode()
    def score(self, token_ids: Sequence[int]) -> list[float]:
        """Log-probability (temperature 1) of each id from the second on, given those before it; what runs is untouched.

        Raises:
            EngineFailed: Nothing is loaded.
        """
        if self._model is None:
            raise EngineFailed("Ids are scored with a model loaded.", "Load one first.")
        ids_1N = torch.tensor([list(token_ids)], device=self._device)
        logits_NV = self._model(input_ids=ids_1N, use_cache=False).logits[0, :-1].float()
        logprobs_NV = torch.log_softmax(logits_NV, dim=-1)
        scores: list[float] = logprobs_NV.gather(1, ids_1N[0, 1:, None]).squeeze(1).tolist()
        return scores

    def _decode(self, batch: _Batch) -> None:
        rows = batch.live
        if batch.logits is None:
            batch.logits = self._forward(rows, batch.prompt_length, batch.cache)
        drawn = sample(batch.logits, [r.prompt.sampling.temperature for r in rows], [r.next_uniform() for r in rows])
        batch.logits = None
        for row, token, logprob in zip(rows, drawn.ids, drawn.logprobs, strict=True):
            row.take(token, logprob)
        for index in range(len(rows) - 1, -1, -1):
            if rows[index].ended:
                batch.cache.drop_row(index)
                rows[index] = rows[-1]
                rows.pop()

    def _prefill(self, group: group_pb2.PromptGroup) -> PromptState:
        if not group.prompt_token_ids or group.group_size < 1 or group.sampling.max_completion_tokens < 1:
            raise EngineFailed(f"Group {group.group_id} has no prompt, no samples or no room for tokens.")
        ids_1P = torch.tensor([list(group.prompt_token_ids)], device=self._device)
        cache = DynamicCache(config=self._model.config)
        output = self._model(input_ids=ids_1P, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return PromptState(cache, output.logits[:, -1])

    def _forward(self, rows: list[_Row], prompt_length: int, cache: RowCache) -> Tensor:
        places = [prompt_length + len(row.ids) - 1 for row in rows]
        output = self._model(
            input_ids=torch.tensor([row.ids[-1:] for row in rows], device=self._device),
            attention_mask=cache.step_mask(len(rows)),
            position_ids=torch.tensor(places, device=self._device).unsqueeze(1),
            past_key_values=cache,
            use_cache=True,
        )
        logits_RV: Tensor = output.logits[:, -1]
        return logits_RV
