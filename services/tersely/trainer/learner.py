"""The learner: a batch of scored groups in, one optimizer step, the next weights out."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
import torch

from tersely.config.learner import LearnerSection
from tersely.errors import ModelInvalid
from tersely.grpo import LossInputs, policy_loss
from tersely.grpo.group_advantages import Advantages, batch_advantages
from tersely.models.device import choose_device, set_threads
from tersely.models.linear import use_fast_linears
from tersely.models.load import load_policy
from tersely.trainer.forward import ForwardSettings
from tersely.trainer.health import HealthSums, StepHealth
from tersely.trainer.masters import MasterWeights
from tersely.trainer.probe import choose_forward
from tersely.trainer.schedule import learning_rate
from tersely.types import GroupId

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class TrainingGroup:
    """One prompt and its samples, as they were sampled and scored.

    Attributes:
        group_id: Names the group in the health of the step.
        prompt_ids: At least one.
        completion_ids: Per sample its sampled ids; the stop token if one was sampled.
        behaviour_logprobs: Per sampled id its log-probability when it was sampled, nats.
        rewards: Per reward name a number or None (could not be scored) per sample.
    """

    group_id: GroupId
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[tuple[int, ...], ...]
    behaviour_logprobs: tuple[tuple[float, ...], ...]
    rewards: dict[str, tuple[float | None, ...]]


class Learner:
    """Policy, masters and optimizer of one trainer.

    The forward pass uses the weights that are published (masters rounded to bf16): fp32 arithmetic on a CPU, bf16
    autocast elsewhere. On one device with one number of threads the same batches give the same bytes.

    Args:
        model_folder: Config, tokenizer and safetensors of the initial policy.
        learner: Settings of optimizer, loss and forward pass.
        temperature: The one that samples are drawn with.
        reward_weights: Per reward name its factor in the advantage.
        total_steps: Steps of the whole run, for the learning rate's schedule.

    Raises:
        ModelInvalid: if the model's logits can't be followed.
        ConfigValue: if the device is not there.
    """

    def __init__(
        self,
        model_folder: Path,
        learner: LearnerSection,
        *,
        temperature: float,
        reward_weights: Mapping[str, float],
        total_steps: int,
    ) -> None:
        self._section = learner
        self._weights = dict(reward_weights)
        self._total_steps = total_steps
        self.threads = set_threads(learner.threads)
        self._device = choose_device(learner.device, "learner.device")
        self._model = load_policy(model_folder).to(self._device)
        if self._device.type == "cpu":
            use_fast_linears(self._model)
        self._forward = choose_forward(self._model, shared_prompt=learner.shared_prompt)
        self._settings = ForwardSettings(
            temperature=temperature,
            logit_chunk_tokens=learner.logit_chunk_tokens,
            recompute=learner.recompute,
            autocast=None if self._device.type == "cpu" else torch.bfloat16,
        )
        self._masters = MasterWeights(self._model, learner)
        log.info("learner_ready", device=str(self._device), threads=self.threads, forward=self._forward.__name__)

    @property
    def device(self) -> str:
        """Where it runs."""
        return str(self._device)

    def train(self, batch: Sequence[TrainingGroup], step: int) -> StepHealth:
        """One optimizer step on a batch, group after group, with token counts over the whole batch.

        Args:
            batch: Groups in the order they are to be added up.
            step: Counts from 1; decides the learning rate.

        Raises:
            ValueError: if a group's parts differ in length, or no sample of the batch can be trained on.
            ModelInvalid: if the gradient is not finite; the weights are as before.
        """
        for group in batch:
            _check(group)
        advantages = batch_advantages(
            [group.rewards for group in batch],
            self._weights,
            scale=self._section.advantage_scale,
            combine=self._section.combine,
        )
        token_count = sum(_tokens(group, values) for group, values in zip(batch, advantages, strict=True))
        if token_count == 0:
            raise ValueError("no sample of the batch has both an advantage and tokens")
        sums = HealthSums()
        for group, values in zip(batch, advantages, strict=True):
            self._add_gradient(group, values, token_count, sums)
        started = time.perf_counter()
        rate = learning_rate(self._section, step, self._total_steps)
        norm = self._masters.step(rate)
        if norm - norm != 0:
            raise ModelInvalid(
                f"The gradient of step {step} is not finite; the weights were left as they were.",
                "Begin a new run with a lower learner.learning_rate.",
            )
        sums.seconds["optimizer"] = time.perf_counter() - started
        by_group = {group.group_id: values for group, values in zip(batch, advantages, strict=True)}
        return sums.health(norm, rate, by_group)

    def published(self) -> dict[str, torch.Tensor]:
        """The policy as samplers get it: bf16 copies on the CPU by sorted name, tied tensors once."""
        return self._masters.published()

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Tensors (fp32 masters and moments, flat names) and JSON facts from which `load_state` goes on exactly."""
        return self._masters.state()

    def load_state(self, tensors: Mapping[str, torch.Tensor], meta: Mapping[str, Any]) -> None:
        """Go on from a state.

        Raises:
            CheckpointInvalid: if it is not a state of this model.
        """
        self._masters.load_state(tensors, meta)

    def _add_gradient(self, group: TrainingGroup, advantages: Advantages, token_count: int, sums: HealthSums) -> None:
        kept = [
            (tuple(ids), tuple(logprobs), advantage)
            for ids, logprobs, advantage in zip(group.completion_ids, group.behaviour_logprobs, advantages, strict=True)
            if advantage is not None and ids
        ]
        if not kept:
            return
        started = time.perf_counter()
        lengths = [len(ids) for ids, _, _ in kept]
        completion_GC = self._pad([ids for ids, _, _ in kept], torch.long)
        prompt_P = torch.tensor(group.prompt_ids, dtype=torch.long, device=self._device)
        result = self._forward(self._model, prompt_P, completion_GC, lengths, self._settings)
        positions_C = torch.arange(completion_GC.shape[1], device=self._device)
        outputs = policy_loss(
            LossInputs(
                logprobs=result.logprobs,
                behaviour_logprobs=self._pad([logprobs for _, logprobs, _ in kept], torch.float32),
                mask=positions_C < torch.tensor(lengths, device=self._device)[:, None],
                advantages=torch.tensor([advantage for *_, advantage in kept], device=self._device),
                clip_low=self._section.clip_low,
                clip_high=self._section.clip_high,
                token_count=token_count,
            )
        )
        sums.add(outputs, result.entropy, len(kept))
        sums.seconds["forward"] += time.perf_counter() - started
        started = time.perf_counter()
        outputs.loss.backward()  # type: ignore[no-untyped-call]
        sums.seconds["backward"] += time.perf_counter() - started

    def _pad(self, rows: Sequence[Sequence[float]], dtype: torch.dtype) -> torch.Tensor:
        width = max(len(row) for row in rows)
        return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], dtype=dtype, device=self._device)


def _tokens(group: TrainingGroup, advantages: Advantages) -> int:
    pairs = zip(group.completion_ids, advantages, strict=True)
    return sum(len(ids) for ids, advantage in pairs if advantage is not None)


def _check(group: TrainingGroup) -> None:
    samples = len(group.completion_ids)
    sizes = {len(group.behaviour_logprobs), *(len(values) for values in group.rewards.values())}
    if not group.prompt_ids or sizes != {samples}:
        raise ValueError(f"group {group.group_id}: prompt, completions, logprobs and rewards do not fit together")
    for ids, logprobs in zip(group.completion_ids, group.behaviour_logprobs, strict=True):
        if len(ids) != len(logprobs):
            raise ValueError(f"group {group.group_id}: {len(ids)} sampled ids have {len(logprobs)} logprobs")
