"""What one optimizer step says about itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import torch

from tersely.grpo.group_advantages import Advantages
from tersely.grpo.inputs import LossOutputs
from tersely.grpo.limits import MAX_LOG_RATIO
from tersely.trainer.distributed.ranks import Ranks
from tersely.trainer.forward import CompletionLogprobs
from tersely.types import GroupId


@dataclass(frozen=True, slots=True)
class StepHealth:
    """Plain numbers of one step (one batch), all over the batch's trained tokens.

    With several optimizer steps per batch the batch is gone through several times. What compares the learner with the
    sampler, and the loss, are figures of the first pass, whose weights are those of the step before; what describes the
    steps is over all passes.

    Attributes:
        loss: The loss that was differentiated first. On fresh samples it is minus the token mean of the advantages,
            which says nothing about progress: only its gradient matters.
        grad_norm: L2 norm of the gradient before it was scaled down; mean over the passes.
        learning_rate: The rate of this step, the same in all its passes.
        entropy: Mean entropy of the learner's token distributions at the sampled positions, nats; first pass.
        clip_share: Share of tokens whose gradient the clip removed; over all passes, since at staleness 0 the first one
            clips nothing.
        mismatch: Mean |learner - recorded behaviour logprob|, nats; first pass. At staleness 0 what sampler and learner
            disagree by.
        kl: Mean k3 estimate of the KL divergence from the initial policy, nats per token; first pass. None: no
            `kl_coefficient`.
        correction_mean: Mean importance weight that the loss was multiplied by; 1 without a correction.
        masked_share: Share of tokens that the correction `mask` took out.
        ratio_mean: Mean of exp(learner - recorded behaviour logprob) in the last pass.
        ratio_max: The largest of them.
        logprob: Mean learner log-probability of the sampled tokens, nats; first pass.
        last_logprob: The same in the last pass, which is before the last optimizer step; with one pass the same number.
        trained_tokens: Tokens in the loss, sampled stop tokens included.
        trained_completions: Samples in the loss.
        optimizer_steps: Passes over the batch.
        micro_batches: Parts that a pass was cut into.
        advantages: Per group one number per sample; None: not in the loss.
        seconds: Wall time of `forward`, `backward` and `optimizer` on this rank.
        group_mismatch: Per group the sum that `mismatch` is the mean of, and over how many tokens.
    """

    loss: float
    grad_norm: float
    learning_rate: float
    entropy: float
    clip_share: float
    mismatch: float
    kl: float | None
    correction_mean: float
    masked_share: float
    ratio_mean: float
    ratio_max: float
    logprob: float
    last_logprob: float
    trained_tokens: int
    trained_completions: int
    optimizer_steps: int
    micro_batches: int
    advantages: dict[GroupId, Advantages]
    seconds: dict[str, float]
    group_mismatch: dict[GroupId, tuple[float, float]] = field(default_factory=dict)


@dataclass(slots=True)
class PassSums:
    """Sums over the tokens of one pass; `ratio_max` is a maximum."""

    loss: float = 0.0
    entropy: float = 0.0
    clipped: float = 0.0
    mismatch: float = 0.0
    kl: float = 0.0
    correction: float = 0.0
    masked: float = 0.0
    ratio: float = 0.0
    logprob: float = 0.0
    tokens: float = 0.0
    completions: float = 0.0
    micro_batches: float = 0.0
    ratio_max: float = 0.0

    @torch.no_grad()
    def add(
        self, outputs: LossOutputs, result: CompletionLogprobs, behaviour_RL: torch.Tensor, mask_RL: torch.Tensor
    ) -> tuple[float, float]:
        """Add one part: its loss, its log-probabilities and entropies, and what was recorded, [R, L] each.

        Returns:
            The part's sum of |learner - recorded logprob|, nats, and its tokens.
        """
        logprobs_N, difference_N = result.logprobs[mask_RL], (result.logprobs - behaviour_RL)[mask_RL]
        ratio_N = difference_N.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
        sums = torch.stack(
            [
                outputs.loss.detach(),
                result.entropy[mask_RL].sum(),
                outputs.clipped_tokens,
                difference_N.abs().sum(),
                outputs.kl_sum,
                outputs.correction_sum,
                outputs.masked_tokens,
                ratio_N.sum(),
                logprobs_N.sum(),
                outputs.tokens,
            ]
        ).tolist()
        for one, value in zip(fields(self), sums, strict=False):
            setattr(self, one.name, getattr(self, one.name) + value)
        self.completions += mask_RL.shape[0]
        self.micro_batches += 1
        self.ratio_max = max(self.ratio_max, float(ratio_N.max()))
        return sums[3], sums[-1]

    def total(self, ranks: Ranks) -> PassSums:
        """The sums of all ranks."""
        *names, last = (one.name for one in fields(self))
        sums = ranks.sums([getattr(self, name) for name in names])
        return PassSums(**dict(zip(names, sums, strict=True)), **{last: ranks.largest(getattr(self, last))})


def step_health(
    passes: Sequence[PassSums],
    grad_norms: Sequence[float],
    *,
    learning_rate: float,
    has_kl: bool,
    advantages: dict[GroupId, Advantages],
    seconds: dict[str, float],
    group_mismatch: dict[GroupId, tuple[float, float]],
) -> StepHealth:
    """The step in all, from the sums of its passes over all ranks."""
    first, last = passes[0], passes[-1]
    tokens = first.tokens
    return StepHealth(
        loss=first.loss,
        grad_norm=sum(grad_norms) / len(grad_norms),
        learning_rate=learning_rate,
        entropy=first.entropy / tokens,
        clip_share=sum(one.clipped for one in passes) / (tokens * len(passes)),
        mismatch=first.mismatch / tokens,
        kl=first.kl / tokens if has_kl else None,
        correction_mean=first.correction / tokens,
        masked_share=first.masked / tokens,
        ratio_mean=last.ratio / tokens,
        ratio_max=last.ratio_max,
        logprob=first.logprob / tokens,
        last_logprob=last.logprob / tokens,
        trained_tokens=round(tokens),
        trained_completions=round(first.completions),
        optimizer_steps=len(passes),
        micro_batches=round(first.micro_batches),
        advantages=advantages,
        seconds=dict(seconds),
        group_mismatch=group_mismatch,
    )
