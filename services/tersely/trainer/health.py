"""What one optimizer step says about itself."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tersely.grpo.group_advantages import Advantages
from tersely.grpo.inputs import LossOutputs
from tersely.types import GroupId


@dataclass(frozen=True, slots=True)
class StepHealth:
    """Plain numbers of one step, all over the batch's trained tokens.

    Attributes:
        loss: The loss that was differentiated. On fresh samples it is minus the token mean of the advantages, which
            says nothing about progress: only its gradient matters.
        grad_norm: L2 norm of the gradient before it was scaled down.
        learning_rate: The rate of this step.
        entropy: Mean entropy of the learner's token distributions at the sampled positions, nats.
        clip_share: Share of tokens whose gradient the clip removed.
        mismatch: Mean |learner - behaviour logprob|, nats: at staleness 0 what sampler and learner disagree by.
        trained_tokens: Tokens in the loss, sampled stop tokens included.
        trained_completions: Samples in the loss.
        advantages: Per group one number per sample; None: not in the loss.
        seconds: Wall time of `forward`, `backward` and `optimizer`.
    """

    loss: float
    grad_norm: float
    learning_rate: float
    entropy: float
    clip_share: float
    mismatch: float
    trained_tokens: int
    trained_completions: int
    advantages: dict[GroupId, Advantages]
    seconds: dict[str, float]


class HealthSums:
    """Adds up the groups of a step."""

    def __init__(self) -> None:
        self.loss = self.entropy = self.clipped = self.mismatch = 0.0
        self.tokens = self.completions = 0
        self.seconds = {"forward": 0.0, "backward": 0.0, "optimizer": 0.0}

    def add(self, outputs: LossOutputs, entropy_GC: torch.Tensor, completions: int) -> None:
        """Add one group, its entropies being 0 outside the mask."""
        self.loss += outputs.loss.item()
        self.entropy += entropy_GC.cpu().sum(dtype=torch.float64).item()
        self.clipped += outputs.clipped_tokens.item()
        self.mismatch += outputs.mismatch_sum.item()
        self.tokens += int(outputs.tokens.item())
        self.completions += completions

    def health(self, grad_norm: float, learning_rate: float, advantages: dict[GroupId, Advantages]) -> StepHealth:
        """The step in all."""
        return StepHealth(
            loss=self.loss,
            grad_norm=grad_norm,
            learning_rate=learning_rate,
            entropy=self.entropy / self.tokens,
            clip_share=self.clipped / self.tokens,
            mismatch=self.mismatch / self.tokens,
            trained_tokens=self.tokens,
            trained_completions=self.completions,
            advantages=advantages,
            seconds=dict(self.seconds),
        )
