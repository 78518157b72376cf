"""`[learner]`: the optimizer, the loss and how they use the machine."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tersely.config.section import Section


class LoraSection(Section):
    """Low-rank adapters (peft); the base weights stay as they are."""

    rank: int = Field(16, ge=1, description="Rank of each adapter.")
    alpha: float = Field(32.0, gt=0, description="Adapters are scaled by alpha / rank.")
    targets: tuple[str, ...] = Field(
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        min_length=1,
        description="Names of the linear layers that get an adapter.",
    )


class LearnerSection(Section):
    """The optimizer and the loss."""

    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="Where the learner runs.")
    threads: int | None = Field(None, ge=1, description="CPU threads of the learner; none: all cores.")
    learning_rate: float = Field(1e-6, gt=0, description="Peak learning rate of AdamW.")
    warmup_steps: int = Field(0, ge=0, description="Steps of linear rise to the peak.")
    schedule: Literal["constant", "linear", "cosine"] = Field("constant", description="Course after the warm-up.")
    final_learning_rate_ratio: float = Field(
        0.0, ge=0, le=1, description="Last learning rate over the peak (linear, cosine)."
    )
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    adam_beta2: float = Field(0.99, ge=0, lt=1)
    adam_epsilon: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0, description="Gradients are scaled down to this L2 norm.")
    loss: Literal["dapo", "grpo", "dr_grpo", "gspo", "cispo"] = Field("dapo", description="Which policy loss.")
    clip_low: float = Field(0.2, gt=0, lt=1, description="Ratio is clipped below at 1 - clip_low.")
    clip_high: float = Field(0.28, gt=0, description="Ratio is clipped above at 1 + clip_high.")
    correction: Literal["none", "tis", "mask"] = Field(
        "none",
        description="none: the ratio is to the recorded behaviour logprobs. tis, mask: the ratio is to the learner's at"
        " the start of the batch, times their truncated or masked importance weight over the recorded ones.",
    )
    correction_cap: float = Field(
        2.0, gt=1, description="Importance weights are truncated (tis) or masked (mask) here."
    )
    kl_coefficient: float = Field(
        0.0, ge=0, description="Weight of the KL divergence (k3) from the initial policy; 0: no reference is loaded."
    )
    optimizer_steps_per_batch: int = Field(1, ge=1, description="Times a batch is gone through, with a step each.")
    advantage_scale: Literal["std", "none"] = Field(
        "std", description="Divide by the group's standard deviation, or not."
    )
    combine: Literal["auto", "normalize_then_sum", "sum_then_normalize"] = Field(
        "auto", description="How several rewards become one advantage; auto: normalize_then_sum from two rewards on."
    )
    shared_prompt: bool = Field(True, description="Forward a group's prompt once.")
    recompute: bool = Field(
        False,
        description="Forward prompts again in the backward pass instead of keeping their activations, and keep parts"
        " small: less memory for about an eighth more time.",
    )
    micro_batch_tokens: int = Field(
        2048,
        ge=64,
        description="Most positions whose activations exist at once; a group with more is taken in parts, with the same"
        " gradient.",
    )
    logit_chunk_tokens: int = Field(256, ge=1, description="Positions whose logits exist at once.")
    parallel: Literal["ddp", "fsdp"] = Field(
        "ddp", description="How several processes under torchrun share the work: copies of the model, or shards."
    )
    lora: LoraSection | None = Field(None, description="Train low-rank adapters instead of all weights.")
    ablate: tuple[Literal["bf16_masters", "no_stop_token", "recomputed_logprobs"], ...] = Field(
        (), description="Defects to bring in on purpose, to measure what they cost. Never for a real run."
    )
