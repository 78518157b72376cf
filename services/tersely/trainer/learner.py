"""The learner: a batch of scored groups in, the next weights out."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import structlog
import torch

from tersely.config.learner import LearnerSection
from tersely.errors import ModelInvalid
from tersely.grpo import LossInputs, policy_loss
from tersely.grpo.group_advantages import batch_advantages
from tersely.models.allocator import keep_freed_memory
from tersely.models.device import choose_device, set_threads
from tersely.models.linear import use_fast_linears
from tersely.models.load import load_policy
from tersely.trainer.ablations import Ablations
from tersely.trainer.distributed.ranks import Ranks, SingleRank
from tersely.trainer.forward import CompletionLogprobs, ForwardSettings, completion_logprobs_shared
from tersely.trainer.groups import BatchCounts, GroupRows, TrainingGroup, batch_counts, check_group, group_rows
from tersely.trainer.health import PassSums, StepHealth, step_health
from tersely.trainer.masters import AdamMasters, MasterWeights
from tersely.trainer.micro_batches import backward_in_parts
from tersely.trainer.probe import choose_forward, probe_logprobs
from tersely.trainer.reference import Reference
from tersely.trainer.schedule import learning_rate
from tersely.types import GroupId
from tersely.weights.adapter import AdapterLayer
from tersely.weights.probe import Probe

__all__ = ["Learner", "TrainingGroup"]

log = structlog.get_logger(__name__)


class Learner:
    """Policy, masters and optimizer of one trainer.

    The forward pass uses the weights that are published (masters rounded to bf16): fp32 arithmetic on a CPU, bf16
    autocast elsewhere. On one device with one number of threads the same batches give the same bytes.

    Args:
        model_folder: Config, tokenizer and safetensors of the initial policy.
        learner: Settings of optimizer, loss and forward pass.
        temperature: The one that samples are drawn with.
        reward_weights: Step, counted from 1 -> per reward name its factor in the advantage.
        total_steps: Steps of the whole run, for the learning rate's schedule.
        max_completion_tokens: How long a completion may become, for the loss `dr_grpo`.
        stop_token_ids: What ends a completion; only `learner.ablate` asks for it.
        ranks: The processes that train together; none: this one alone.

    Raises:
        ModelInvalid: if the model's logits can't be followed, or `learner.lora.targets` does not fit it.
        ConfigValue: if the device is not there.
    """

    def __init__(
        self,
        model_folder: Path,
        learner: LearnerSection,
        *,
        temperature: float,
        reward_weights: Callable[[int], Mapping[str, float]],
        total_steps: int,
        max_completion_tokens: int,
        stop_token_ids: Collection[int] = (),
        ranks: Ranks | None = None,
    ) -> None:
        self._section = learner
        self._reward_weights = reward_weights
        self._total_steps = total_steps
        self._max_completion_tokens = max_completion_tokens
        self._ranks: Ranks = ranks or SingleRank()
        self._ablations = Ablations(learner.ablate, stop_token_ids)
        self.threads = set_threads(learner.threads)
        self._device = choose_device(learner.device, "learner.device")
        if self._device.type == "cpu":
            keep_freed_memory()
        self._model = load_policy(model_folder)
        make_masters: Callable[..., AdamMasters] = MasterWeights
        if learner.lora is not None:
            # peft takes seconds to import.
            from tersely.trainer.lora import AdapterWeights, add_adapters

            add_adapters(self._model, learner.lora)
            make_masters = AdapterWeights
        self._model.to(self._device)
        if self._device.type == "cpu":
            use_fast_linears(self._model)
        self._forward = choose_forward(self._model, shared_prompt=learner.shared_prompt)
        self._settings = ForwardSettings(
            temperature=temperature,
            logit_chunk_tokens=learner.logit_chunk_tokens,
            recompute=learner.recompute,
            autocast=None if self._device.type == "cpu" else torch.bfloat16,
        )
        self._ranks.adopt(self._model)
        self._masters = make_masters(
            self._model, learner, grad_norm=self._ranks.grad_norm, after_change=self._ablations.masters
        )
        self._reference = Reference(model_folder, self._model, self._masters) if learner.kl_coefficient > 0 else None
        log.info("learner_ready", device=str(self._device), threads=self.threads, forward=self._forward.__name__)

    @property
    def device(self) -> str:
        """Where it runs."""
        return str(self._device)

    @property
    def ranks(self) -> int:
        """Processes that it is made of."""
        return self._ranks.size

    def train(self, batch: Sequence[TrainingGroup], step: int) -> StepHealth:
        """`optimizer_steps_per_batch` passes over a batch with an optimizer step each.

        Groups are added up in order, with token and sample counts over the whole batch. All ranks call this with the
        same batch; each computes its share of the groups.

        Args:
            batch: Groups in the order they are to be added up.
            step: Counts from 1; decides the learning rate and the weights of the rewards.

        Raises:
            ValueError: if a group's parts differ in length, or no sample of the batch can be trained on.
            ModelInvalid: if the gradient is not finite; the weights are as they were before that optimizer step.
        """
        for group in batch:
            check_group(group)
        batch = self._ablations.batch(batch)
        advantages = batch_advantages(
            [group.rewards for group in batch],
            self._reward_weights(step),
            scale=self._section.advantage_scale,
            combine=self._section.combine,
        )
        counts = batch_counts(batch, advantages)
        if counts.tokens == 0:
            raise ValueError("no sample of the batch has both an advantage and tokens")
        share = self._ranks.share([len(g.prompt_ids) + sum(map(len, g.completion_ids)) for g in batch])
        rows = [group_rows(batch[index], advantages[index], self._device) for index in share]
        groups = [group for group in rows if group is not None]
        rate = learning_rate(self._section, step, self._total_steps)
        seconds = {"forward": 0.0, "backward": 0.0, "optimizer": 0.0}
        passes, norms = [], []
        for _ in range(self._section.optimizer_steps_per_batch):
            passes.append(self._add_gradients(groups, counts, seconds).total(self._ranks))
            started = time.perf_counter()
            norms.append(self._masters.step(rate))
            seconds["optimizer"] += time.perf_counter() - started
            if norms[-1] - norms[-1] != 0:
                raise ModelInvalid(
                    f"The gradient of step {step} is not finite; the weights were left as they were.",
                    "Begin a new run with a lower learner.learning_rate.",
                )
        return step_health(
            passes,
            norms,
            learning_rate=rate,
            has_kl=self._section.kl_coefficient > 0,
            advantages={group.group_id: values for group, values in zip(batch, advantages, strict=True)},
            seconds=seconds,
            group_mismatch=self._mismatch(batch, dict(zip(share, rows, strict=True))),
        )

    def _mismatch(
        self, batch: Sequence[TrainingGroup], mine: Mapping[int, GroupRows | None]
    ) -> dict[GroupId, tuple[float, float]]:
        """Per group of the batch, whichever rank had it: the sum of |learner - behaviour|, and its tokens."""
        found = [(0.0, 0.0) if (rows := mine.get(index)) is None else rows.mismatch for index in range(len(batch))]
        sums = self._ranks.sums([value for pair in found for value in pair])
        return {
            group.group_id: pair for group, pair in zip(batch, zip(sums[::2], sums[1::2], strict=True), strict=True)
        }

    def fit(self, learner: LearnerSection) -> None:
        """Takes over the settings that fit the learner to a machine, from the next step on.

        Args:
            learner: Others in it must be those that the learner was made with.
        """
        if learner.shared_prompt != self._section.shared_prompt:
            self._forward = choose_forward(self._model, shared_prompt=learner.shared_prompt)
        self._section = learner
        self._settings = replace(
            self._settings, logit_chunk_tokens=learner.logit_chunk_tokens, recompute=learner.recompute
        )

    def published(self) -> dict[str, torch.Tensor]:
        """The policy as samplers get it: bf16 copies on the CPU by sorted name, tied tensors once."""
        return self._masters.published()

    def probe(self) -> Probe:
        """What the published weights say of a few fixed tokens, in fp32."""
        with self._ranks.weights():
            return probe_logprobs(self._model)

    def low_rank(self) -> list[AdapterLayer] | None:
        """What the published weights differ in from those of version 0; None: all weights are trained."""
        return self._masters.low_rank()

    def adapter(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]] | None:
        """Config and fp32 tensors of the adapter in peft's format; None: all weights are trained."""
        return self._masters.adapter()

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """What `load_state` goes on from exactly: fp32 masters of what is trained, moments, and JSON facts."""
        return self._masters.state()

    def load_state(self, tensors: Mapping[str, torch.Tensor], meta: Mapping[str, Any]) -> None:
        """Go on from a state.

        Raises:
            CheckpointInvalid: if it is not a state of this model.
        """
        self._masters.load_state(tensors, meta)

    def _add_gradients(self, groups: Sequence[GroupRows], counts: BatchCounts, seconds: dict[str, float]) -> PassSums:
        """One pass over this rank's share of a batch."""
        sums = PassSums()
        with self._ranks.gradients():
            for group in groups:
                self._add_gradient(group, counts, sums, seconds)
        return sums

    def _add_gradient(self, group: GroupRows, counts: BatchCounts, sums: PassSums, seconds: dict[str, float]) -> None:
        first_pass = group.start is None
        if first_pass:
            if self._reference is not None:
                group.reference = self._reference.logprobs(self._forward, group, self._settings)
            group.start = torch.zeros_like(group.behaviour)

        def part_loss(rows: list[int], result: CompletionLogprobs) -> torch.Tensor:
            assert group.start is not None
            part = (rows, slice(result.logprobs.shape[1]))
            if first_pass:
                group.start[part] = result.logprobs.detach().to(group.start.dtype)
            outputs = policy_loss(
                LossInputs(
                    logprobs=result.logprobs,
                    behaviour_logprobs=self._ablations.behaviour(group)[part],
                    mask=group.mask[part],
                    advantages=group.advantages[rows],
                    start_logprobs=group.start[part],
                    reference_logprobs=None if group.reference is None else group.reference[part],
                    loss=self._section.loss,
                    clip_low=self._section.clip_low,
                    clip_high=self._section.clip_high,
                    correction=self._section.correction,
                    correction_cap=self._section.correction_cap,
                    kl_coefficient=self._section.kl_coefficient,
                    token_count=counts.tokens,
                    sample_count=counts.samples,
                    max_completion_tokens=self._max_completion_tokens,
                )
            )
            nats, tokens = sums.add(outputs, result, group.behaviour[part], group.mask[part])
            if first_pass:
                group.mismatch = (group.mismatch[0] + nats, group.mismatch[1] + tokens)
            return outputs.loss

        backward_in_parts(
            self._model,
            group,
            self._settings,
            part_loss,
            shared=self._forward is completion_logprobs_shared,
            budget=self._section.micro_batch_tokens,
            seconds=seconds,
        )
