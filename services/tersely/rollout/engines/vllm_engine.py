"""The engine on vLLM, for CUDA and x86 CPUs, in an environment of its own (`make setup-vllm`).

vLLM batches, schedules and keeps the keys and values; a group's prompt is shared block by block through its prefix
cache, so that only the last, part-filled block is computed once per sample. Tokens are drawn by our own numbers.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tersely.errors import EngineFailed
from tersely.models.device import choose_device, set_threads
from tersely.rollout.engines.base import HALF_TOLERANCE, Capabilities, EngineSettings, GeneratedGroup, is_bit_exact
from tersely.rollout.engines.vllm_runtime import FAILURES, VllmRuntime, import_vllm
from tersely.types import WeightsLabel
from tersely.v1 import common_pb2, group_pb2

if TYPE_CHECKING:
    from torch import Tensor

    from tersely.rollout.engines.vllm_draws import Draw


@dataclass(slots=True)
class _Sample:
    """One sample on its way.

    Attributes:
        request: Id of vLLM's request for it; None while it is parked, and once it has ended.
    """

    group: group_pb2.PromptGroup
    draw: Draw
    ids: list[int] = field(default_factory=list)
    labels: list[WeightsLabel] = field(default_factory=list)
    request: str | None = None
    stopped: bool = False
    ended: bool = False

    def completion(self) -> group_pb2.Completion:
        reason = common_pb2.FINISH_REASON_STOP if self.stopped else common_pb2.FINISH_REASON_LENGTH
        return group_pb2.Completion(
            sample_index=self.draw.sample_index,
            token_ids=self.ids,
            behaviour_logprobs=[self.draw.drawn[place][1] for place in range(len(self.ids))],
            finish_reason=reason,
            version_spans=_spans(self.labels),
        )


@dataclass(slots=True)
class _Running:
    """A group on its way; its samples in order."""

    group: group_pb2.PromptGroup
    samples: list[_Sample]
    began: float

    @property
    def rows(self) -> int:
        return sum(not sample.ended for sample in self.samples)


class VllmEngine:
    """Samples with vLLM; fp32 on the CPU, bf16 on CUDA.

    Args:
        settings: Device, threads, sequences and tokens decoded together. Look-up is left to the torch engine.

    Raises:
        ModuleNotFoundError: vLLM is not installed in this environment.
        ConfigValue: The device is not there, or vLLM is built for another one.
    """

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        self._device = choose_device(settings.device, "rollout.device")
        # Before vLLM makes its engine: it forbids setting the number later.
        self._threads = set_threads(settings.threads)
        import_vllm(self._device)
        self._dtype = torch.float32 if self._device.type == "cpu" else torch.bfloat16
        self._runtime: VllmRuntime | None = None
        self._config = b""
        self._label: WeightsLabel | None = None
        self._weights: dict[str, Tensor] = {}
        self._running: dict[str, _Running] = {}
        self._samples: dict[str, _Sample] = {}
        self._requests = 0

    @property
    def label(self) -> WeightsLabel | None:
        """Label of the weights held; none before `load`."""
        return self._label

    @property
    def running(self) -> int:
        """Groups admitted and not yet finished or cancelled."""
        return len(self._running)

    @property
    def rows_running(self) -> int:
        """Sequences of them that have not ended; only these take places of the batch."""
        return sum(running.rows for running in self._running.values())

    def capabilities(self) -> Capabilities:
        """What this engine can do."""
        return Capabilities(
            name="vllm",
            device=str(self._device),
            threads=self._threads,
            bit_exact=False,
            batch_sequences=self._settings.batch_sequences,
            dtype=str(self._dtype).removeprefix("torch."),
            in_flight=True,
            logprob_tolerance=1e-3 if self._dtype == torch.float32 else HALF_TOLERANCE,
        )

    def load(self, model_folder: Path, label: WeightsLabel, weights: Mapping[str, Tensor]) -> None:
        """Builds the model from config.json alone and fills it; the model is kept where the config is the same.

        Raises:
            EngineFailed: vLLM can't run the model here, or the weights do not fit it.
        """
        for group_id in list(self._running):
            self.cancel(group_id)
        try:
            config = (model_folder / "config.json").read_bytes()
        except OSError as error:
            raise EngineFailed(f"{model_folder} has no config.json: {error}", "Check the run's model.") from error
        if self._runtime is not None and config != self._config:
            self._runtime.close()
            self._runtime = None
        self._label, self._weights = None, {}
        if self._runtime is None:
            self._runtime = VllmRuntime(model_folder, self._settings, self._device, self._dtype)
            # A worker that joins another run drops the engine: its model and caches have to go before the next.
            weakref.finalize(self, self._runtime.close).atexit = False
            self._config = config
        checked = self._runtime.check(weights)
        self._runtime.refill(checked)
        self._label, self._weights = label, checked

    def swap(self, label: WeightsLabel, weights: Mapping[str, Tensor]) -> None:
        """Puts other weights of the same model in place; running groups go on under them.

        Raises:
            EngineFailed: Nothing is loaded, or the weights do not fit: the old ones are kept whole.
        """
        runtime, _ = self._loaded()
        checked = runtime.check(weights)
        self._park()
        try:
            runtime.refill(checked)
        except EngineFailed:
            held, self._label = self._label, None
            runtime.refill(self._weights)
            self._label = held
            raise
        self._label, self._weights = label, checked

    def has_room(self, group: group_pb2.PromptGroup) -> bool:
        """Whether the group's sequences and tokens fit beside those that run; an exact group runs alone."""
        if not self._running:
            return True
        if is_bit_exact(group) or any(is_bit_exact(other.group) for other in self._running.values()):
            return False
        tokens = sum(_most_tokens(other.group, other.rows) for other in self._running.values())
        tokens += _most_tokens(group, group.group_size)
        capacity = self._runtime.capacity_tokens if self._runtime is not None else 0
        rows = self.rows_running + group.group_size
        return rows <= self._settings.batch_sequences and tokens <= (self._settings.batch_tokens or capacity)

    def admit(self, group: group_pb2.PromptGroup) -> None:
        """Hands the samples to vLLM, which prefills at the next step.

        Raises:
            EngineFailed: Nothing is loaded, or the group can't be run.
        """
        from tersely.rollout.engines.vllm_draws import Draw

        runtime, _ = self._loaded()
        self._check(group, runtime)
        if not self._running and is_bit_exact(group):
            runtime.forget_prefixes()  # what ran before must not decide which products are computed
        sampling = group.sampling
        draws = [
            Draw(sampling.seed, index, index < sampling.greedy_samples, sampling.temperature)
            for index in range(group.group_size)
        ]
        self._running[group.group_id] = _Running(group, [_Sample(group, draw) for draw in draws], time.perf_counter())
        try:
            self._submit(runtime, self._running[group.group_id])
        except EngineFailed:
            self.cancel(group.group_id)
            raise

    def step(self) -> list[GeneratedGroup]:
        """One step of vLLM; the groups whose last sample ended, in the order they ended.

        Raises:
            EngineFailed: vLLM failed, or the logits are not finite; nothing runs afterwards.
        """
        if not self._running:
            return []
        runtime, label = self._loaded()
        try:
            for running in self._running.values():
                self._submit(runtime, running)
            for output in runtime.engine.step():
                self._take(output, label)
        except (EngineFailed, *FAILURES) as error:
            for group_id in list(self._running):
                self.cancel(group_id)
            runtime.wipe_caches()
            if isinstance(error, EngineFailed):
                raise
            raise EngineFailed(f"vLLM failed: {error}", "See the worker's log.") from error
        finished = []
        for running in list(self._running.values()):
            if all(sample.ended for sample in running.samples):
                completions = tuple(sample.completion() for sample in running.samples)
                finished.append(GeneratedGroup(running.group, completions, time.perf_counter() - running.began))
                self._forget(running)
        return finished

    def cancel(self, group_id: str) -> None:
        """Forgets a running group at once; an unknown one is left alone."""
        running = self._running.get(group_id)
        if running is None:
            return
        self._take_back(running)
        self._forget(running)

    def score(self, token_ids: Sequence[int]) -> list[float]:
        """Log-probability (temperature 1) of each id from the second on, given those before it.

        Running groups are parked meanwhile and get no token.

        Raises:
            EngineFailed: Nothing is loaded, or the ids do not fit the model.
        """
        runtime, _ = self._loaded()
        self._park()
        if len(token_ids) < 2:
            return []
        if len(token_ids) >= runtime.longest or max(token_ids) >= runtime.vocabulary:
            raise EngineFailed("The ids to score do not fit the model.", "Check that the model is the run's.")
        return runtime.score(token_ids)

    def _loaded(self) -> tuple[VllmRuntime, WeightsLabel]:
        if self._runtime is None or self._label is None:
            raise EngineFailed("No model is loaded.", "Load one first.")
        return self._runtime, self._label

    def _check(self, group: group_pb2.PromptGroup, runtime: VllmRuntime) -> None:
        if not group.prompt_token_ids or group.group_size < 1 or group.sampling.max_completion_tokens < 1:
            raise EngineFailed(f"Group {group.group_id} has no prompt, no samples or no room for tokens.")
        if group.group_id in self._running:
            raise EngineFailed(f"Group {group.group_id} is running already.")
        longest = len(group.prompt_token_ids) + group.sampling.max_completion_tokens
        if longest > runtime.longest:
            raise EngineFailed(
                f"Group {group.group_id} may grow to {longest} tokens; there is room for {runtime.longest}.",
                "Raise rollout.batch_tokens, or shorten prompts.",
            )
        if max(group.prompt_token_ids) >= runtime.vocabulary:
            raise EngineFailed(f"The prompt of group {group.group_id} has ids beyond the model's vocabulary.")

    def _submit(self, runtime: VllmRuntime, running: _Running) -> None:
        """Hands vLLM what it does not have of a group; what a sample has already is then part of the prompt."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        group = running.group
        for sample in running.samples:
            if sample.request is not None or sample.ended:
                continue
            sample.draw.first_position = len(sample.ids)
            params = SamplingParams(
                temperature=0.0,
                max_tokens=group.sampling.max_completion_tokens - len(sample.ids),
                stop_token_ids=list(group.stop_token_ids),
                ignore_eos=True,
                detokenize=False,
                output_kind=RequestOutputKind.DELTA,
                extra_args=sample.draw.open(),
            )
            self._requests += 1
            name = str(self._requests)
            try:
                runtime.engine.add_request(name, {"prompt_token_ids": [*group.prompt_token_ids, *sample.ids]}, params)
            except (ValueError, TypeError, RuntimeError) as error:
                raise EngineFailed(f"vLLM refused group {group.group_id}: {error}", "See the worker's log.") from error
            sample.request = name
            self._samples[name] = sample

    def _park(self) -> None:
        """Takes all requests back from vLLM; the next step hands them in again."""
        for running in self._running.values():
            self._take_back(running)

    def _take_back(self, running: _Running) -> None:
        names = [sample.request for sample in running.samples if sample.request is not None]
        if names and self._runtime is not None:
            self._runtime.engine.abort_request(names)
        for sample in running.samples:
            if sample.request is not None:
                del self._samples[sample.request]
                sample.request = None

    def _take(self, output: Any, label: WeightsLabel) -> None:
        sample, part = self._samples[output.request_id], output.outputs[0]
        for token in part.token_ids:
            drawn, _ = sample.draw.drawn[len(sample.ids)]
            if drawn != token:
                raise EngineFailed(f"vLLM took token {token} where {drawn} was drawn.", "Report this with its log.")
            sample.ids.append(int(token))
            sample.labels.append(label)
        if output.finished:
            sample.ended, sample.stopped = True, part.finish_reason == "stop"
            del self._samples[output.request_id]
            sample.request = None

    def _forget(self, running: _Running) -> None:
        for sample in running.samples:
            sample.draw.close()
        del self._running[running.group.group_id]


def _most_tokens(group: group_pb2.PromptGroup, rows: int) -> int:
    """Tokens that a group may hold: its prompt once, and the limit of each sample that has not ended."""
    return len(group.prompt_token_ids) + rows * group.sampling.max_completion_tokens


def _spans(labels: Sequence[WeightsLabel]) -> list[group_pb2.VersionSpan]:
    """One span per stretch of tokens under one label."""
    spans: list[group_pb2.VersionSpan] = []
    for place, label in enumerate(labels):
        if place == 0 or labels[place - 1] != label:
            spans.append(group_pb2.VersionSpan(weights=label.to_proto(), first_token=place))
        spans[-1].token_count += 1
    return spans
