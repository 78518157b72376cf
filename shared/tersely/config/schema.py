"""What a recipe may hold. Unknown keys are refused; every unit is in the name."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from tersely.config.contradictions import refuse_contradictions
from tersely.config.figures import HeldOutFigure, held_out_figures
from tersely.config.judge import JudgeSection
from tersely.config.learner import LearnerSection
from tersely.config.section import Section
from tersely.config.stages import StageSection, check_stages, stage_at, stage_weights
from tersely.config.watchdog import WatchdogSection


class RunSection(Section):
    """How long, how much at a time, and how strictly in order."""

    seed: int = Field(0, ge=0, description="Fixes data order and every sampled token.")
    steps: int = Field(100, ge=1, description="Batches to train; each makes one policy version.")
    groups_per_step: int = Field(4, ge=1, description="Groups with signal per batch.")
    group_size: int = Field(8, ge=2, description="Completions per prompt.")
    max_staleness: int = Field(
        0, ge=0, description="Versions a group may lag behind; 0 is synchronous and deterministic."
    )
    max_refill: int = Field(16, ge=0, description="Replacement groups per step before training on what there is.")
    max_steps_without_signal: int = Field(
        8, ge=1, description="Batches in a row without any signal before the run ends."
    )
    checkpoint_every: int = Field(50, ge=1, description="Steps between checkpoints; the last step always makes one.")
    keep_checkpoints: int = Field(2, ge=1, description="Newest checkpoints to keep.")


class ModelSection(Section):
    """The policy: a folder, a hub id, or a built-in name."""

    name: str = Field(
        "smollm2-135m", description="Folder, hub id, `smollm2-135m`, or `tiny` (random weights, for tests)."
    )
    revision: str | None = Field(None, description="Hub revision; none: the default branch.")


class DataSection(Section):
    """Documents, references and how they become prompts."""

    source: str = Field("aclsum", description="`aclsum`, a folder or file of JSONL, or a hub data set id.")
    train_split: str = Field("train", description="Split to train on.")
    eval_split: str = Field("val", description="Held-out split.")
    document_field: str = Field("document", description="Field of a JSONL or hub record with the source text.")
    summary_field: str = Field("summary", description="Field with the reference summary.")
    max_document_tokens: int = Field(512, ge=16, description="Longer documents are cut at a sentence end, and counted.")
    max_records: int | None = Field(None, ge=1, description="Use only the first so many training records.")
    prompt: str = Field(
        "Summarize the following text in about {target_tokens} tokens. Write only the summary.\n\n{document}",
        description="User message; {target_tokens} and {document} are filled in.",
    )
    system_prompt: str | None = Field(None, description="System message; none: the model's own default.")

    @model_validator(mode="after")
    def _prompt_has_fields(self) -> Self:
        for field in ("{target_tokens}", "{document}"):
            if field not in self.prompt:
                raise ValueError(f"data.prompt must contain {field}")
        return self


class LengthSection(Section):
    """The length to learn, in tokens of the policy's tokenizer."""

    target_tokens: int = Field(64, ge=1, description="Length asked for, stop token not counted.")
    target_range: tuple[int, int] | None = Field(
        None,
        description="Least and most of a target per prompt, drawn evenly for each group and written into its prompt, so"
        " that one model can be told its length; none: target_tokens for all.",
    )
    max_completion_tokens: int | None = Field(
        None,
        ge=2,
        description="Most sampled tokens; none: max(2 x target, target + 32), which is also the least allowed.",
    )

    @model_validator(mode="after")
    def _range_is_a_range(self) -> Self:
        if self.target_range is not None and not 1 <= self.target_range[0] <= self.target_range[1]:
            raise ValueError(
                f"length.target_range {list(self.target_range)} must be [least, most] with 1 <= least <= most"
            )
        return self

    @property
    def targets(self) -> tuple[int, int]:
        """Least and most of the targets that prompts state; equal where there is one for all."""
        return (self.target_tokens, self.target_tokens) if self.target_range is None else self.target_range

    @property
    def longest_target(self) -> int:
        """The largest target that a prompt can state."""
        return self.targets[1]


class SamplingSection(Section):
    """How training completions are drawn. There is no top-p or top-k: they would falsify the logprobs."""

    temperature: float = Field(
        1.0, gt=0, le=4, description="Divides the logits, on the sampling and the learning side."
    )


class RewardSection(Section):
    """One reward: its weight, and options that the reward itself checks."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    weight: float = Field(1.0, description="Factor in the advantage; 0 shows the reward without training on it.")

    @model_validator(mode="after")
    def _options_are_finite(self) -> Self:
        for name, value in self.options.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{name} is {value}: write a number, a large one where there is to be no limit")
        return self

    @property
    def options(self) -> dict[str, object]:
        """Options beyond the weight, for the reward's constructor."""
        return dict(self.model_extra or {})


class QueueSection(Section):
    """Redis or Valkey and the leases in it."""

    url: str | None = Field(
        None, description="redis://, rediss:// or unix:// URL; none: `tersely up` starts a server on this machine."
    )
    host: str = Field(
        "127.0.0.1",
        description="Where the server that `tersely up` starts listens: the embedded Valkey, beyond loopback one with"
        " TLS.",
    )
    port: int = Field(0, ge=0, le=65535, description="Port of the server with TLS; 0: a free one.")
    server: str | None = Field(
        None, description="Program of the server with TLS; none: the valkey-server or redis-server found."
    )
    authority: Literal["system", "own"] = Field(
        "system",
        description="Whose certificate a rediss:// server shows: one that this machine trusts for its host name, or"
        " the trainer's.",
    )
    password_env: str = Field("TERSELY_REDIS_PASSWORD", description="Environment variable with the password, if any.")
    username: str | None = Field(None, description="Redis user; none: the one in the URL, or the default user.")
    lease_seconds: float = Field(20.0, gt=0, description="A lease not renewed for this long is free for others.")
    max_strikes: int = Field(3, ge=1, description="Reported failures before a group is quarantined.")
    max_expired_leases: int = Field(
        10, ge=1, description="Expired leases before a group is quarantined as suspected poison."
    )


class RpcSection(Section):
    """gRPC of the trainer."""

    host: str = Field(
        "127.0.0.1",
        description="Address the trainer listens on; beyond loopback with TLS (`tersely ca init`), or by insecure_lan.",
    )
    port: int = Field(0, ge=0, le=65535, description="0: a free port.")
    join_port: int = Field(
        7071, ge=0, le=65535, description="Port at which nodes join, open only with TLS; 0: a free port."
    )
    insecure_lan: bool = Field(
        False, description="Allow plaintext beyond loopback. Anyone on the network can read and write."
    )
    chunk_bytes: int = Field(1 << 20, ge=1024, le=3 << 20, description="Bytes per chunk of weights.")
    snapshots: int = Field(
        3, ge=1, le=64, description="Newest versions the trainer keeps in memory; a worker that holds one gets a delta."
    )
    snapshot_bytes: int | None = Field(
        None, ge=0, description="Keep fewer where they would take more than this; the current version always stays."
    )


class RolloutSection(Section):
    """The workers that sample."""

    workers: int = Field(1, ge=0, le=64, description="Rollout processes that `tersely up` starts.")
    engine: str = Field("torch", description="Engine of the workers: `torch`, `mlx`, `vllm`, `stub`, or a plugin.")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="Where the torch engine runs.")
    threads: int | None = Field(None, ge=1, description="CPU threads per worker; none: all cores.")
    batch_sequences: int = Field(16, ge=1, description="Sequences decoded together where order need not be bit-exact.")
    batch_tokens: int | None = Field(
        None, ge=64, description="Prompt and completion tokens a worker holds at a time; none: what fits in its memory."
    )
    swap: Literal["drain", "inflight"] = Field(
        "drain",
        description="Whether running groups are finished by the version that began them, or go on.",
    )
    lookup_tokens: int = Field(
        0,
        ge=0,
        le=16,
        description="Tokens drafted per step from the prompt's own text; changes speed, and tokens by rounding only.",
    )


class ScorerSection(Section):
    """The processes that compute rewards."""

    workers: int = Field(1, ge=1, le=64, description="Scorer processes that `tersely up` starts.")
    host: str = Field("127.0.0.1", description="Address of ScoringService; beyond loopback as rpc.host.")
    port: int = Field(0, ge=0, le=65535, description="Port of ScoringService (a scorer without a run); 0: a free port.")


class EvaluationSection(Section):
    """Held-out evaluation before and after training, through the same workers and scorers."""

    prompts: int = Field(50, ge=0, description="Held-out prompts, the first of the split; 0: no evaluation.")
    samples: int = Field(1, ge=1, description="Sampled completions per prompt, beside the greedy one.")
    seed: int = Field(1234, ge=0, description="Sampling seed of the evaluation.")
    every: int = Field(
        0,
        ge=0,
        description="Steps between evaluations during training, which goes on meanwhile; 0: only before and after.",
    )
    best_by: str = Field(
        "greedy.within_5",
        description="Held-out figure by which the best checkpoint is chosen and kept, with evaluation.every: greedy or"
        " sampled, a dot, and within_5, stopped, mean_abs_length_error or the name of a reward.",
    )


class AlarmsSection(Section):
    """What the run does when its figures look wrong, and from when on they do."""

    action: Literal["warn", "stop", "roll_back"] = Field(
        "warn", description="Say it; or also drain the run; or also go back to the best checkpoint."
    )
    window_steps: int = Field(8, ge=2, description="Steps over which a figure must look wrong, on average.")
    at_limit_share: float = Field(
        0.5, gt=0, le=1, description="Share of completions cut off at the limit that is too high when it does not fall."
    )
    length_spread_tokens: float = Field(
        1.0, ge=0, description="Standard deviation of lengths within a group below which their spread is gone."
    )
    length_lost_factor: float = Field(
        2.0, gt=1, description="Length error over the lowest of the run so far from which on lengths are being lost."
    )
    entropy_floor: float = Field(0.1, ge=0, description="Nats per token below which the policy has collapsed.")
    entropy_fall: float = Field(
        0.15, ge=0, lt=1, description="Entropy over that of the first steps below which the policy has collapsed."
    )
    reward_correlation: float = Field(
        -0.5, ge=-1, le=0, description="Correlation of two rewards within groups below which they fight."
    )
    distinct_2_floor: float = Field(
        0.3, ge=0, le=1, description="Share of different word pairs in a batch below which it is a template."
    )
    self_overlap: float = Field(
        0.3, gt=0, le=1, description="Word pairs that completions share with one of another prompt; above: a template."
    )
    opening_share: float = Field(
        0.9, gt=0, le=1, description="Share of completions with the same first four words; above: a template."
    )
    zero_variance_share: float = Field(0.7, gt=0, le=1, description="Share of groups without signal.")
    stale_share: float = Field(0.3, gt=0, le=1, description="Share of groups too old to train on.")
    mismatch_nats: float = Field(0.05, gt=0, description="Mean |learner - behaviour logprob| at staleness 0.")
    grad_norm_factor: float = Field(
        10.0, gt=1, description="Gradient norm over the median of the window for two steps in a row: a jump."
    )


class UpSection(Section):
    """The supervisor."""

    max_restarts: int = Field(
        5, ge=0, description="Deaths of one service within restart_window_seconds before `up` gives up."
    )
    restart_window_seconds: float = Field(300.0, gt=0)
    drain_seconds: float = Field(30.0, gt=0, description="Time a service has to end in good order before it is killed.")


def _default_rewards() -> dict[str, RewardSection]:
    return {"length": RewardSection()}


Rewards = Annotated[dict[str, RewardSection], Field(min_length=1)]


class Recipe(Section):
    """A whole run. Every default is the value used when the key is left out."""

    run: RunSection = RunSection()
    model: ModelSection = ModelSection()
    data: DataSection = DataSection()
    length: LengthSection = LengthSection()
    sampling: SamplingSection = SamplingSection()
    learner: LearnerSection = LearnerSection()
    rewards: Rewards = Field(default_factory=_default_rewards)
    stages: tuple[StageSection, ...] = Field((), description="A curriculum: each stage has steps and reward weights.")
    queue: QueueSection = QueueSection()
    rpc: RpcSection = RpcSection()
    rollout: RolloutSection = RolloutSection()
    scorer: ScorerSection = ScorerSection()
    judge: JudgeSection = JudgeSection()
    evaluation: EvaluationSection = EvaluationSection()
    alarms: AlarmsSection = AlarmsSection()
    watchdog: WatchdogSection = WatchdogSection()
    up: UpSection = UpSection()

    @model_validator(mode="after")
    def _check_across(self) -> Self:
        least = self.least_completion_tokens
        given = self.length.max_completion_tokens
        if given is not None and given < least:
            raise ValueError(
                f"length.max_completion_tokens is {given}, but a target of {self.length.longest_target} needs at least"
                f" {least}: a lower limit would cut completions off right where length is learned"
            )
        check_stages(self.stages, set(self.rewards), self.run.steps)
        self._check_evaluation()
        refuse_contradictions(self)
        if not self.stages and not any(reward.weight != 0 for reward in self.rewards.values()):
            raise ValueError("rewards: at least one reward needs a weight other than 0")
        return self

    def _check_evaluation(self) -> None:
        known = self._held_out_figures()
        if self.evaluation.best_by not in known:
            raise ValueError(
                f"evaluation.best_by {self.evaluation.best_by!r} is no held-out figure of this recipe; known are"
                f" {', '.join(known)}"
            )
        if self.evaluation.every and not self.evaluation.prompts:
            raise ValueError(
                f"evaluation.every is {self.evaluation.every}, but evaluation.prompts is 0: there is nothing to"
                " evaluate on; set evaluation.prompts, or evaluation.every = 0"
            )

    def _held_out_figures(self) -> dict[str, HeldOutFigure]:
        return held_out_figures({name: reward.weight for name, reward in self.rewards.items()}, self.stages)

    @property
    def best_figure(self) -> HeldOutFigure:
        """The figure that `evaluation.best_by` names."""
        return self._held_out_figures()[self.evaluation.best_by]

    @property
    def least_completion_tokens(self) -> int:
        """Least allowed limit for the target: max(2 x target, target + 32) tokens."""
        return max(2 * self.length.longest_target, self.length.longest_target + 32)

    @property
    def max_completion_tokens(self) -> int:
        """Most sampled ids per completion, stop token included."""
        return self.length.max_completion_tokens or self.least_completion_tokens

    def reward_weights(self, step: int) -> dict[str, float]:
        """Factor of every reward in the advantages of a step that counts from 1, in the order of `rewards`."""
        if not self.stages:
            return {name: reward.weight for name, reward in self.rewards.items()}
        weights = stage_weights(self.stages, step)
        return {name: weights.get(name, 0.0) for name in self.rewards}

    def stage_name(self, step: int) -> str | None:
        """Name of the stage that a step, which counts from 1, belongs to; None in a run without stages."""
        return stage_at(self.stages, step)[0].name if self.stages else None

    @property
    def synchronous(self) -> bool:
        """Whether every group names the weights it needs (max_staleness = 0)."""
        return self.run.max_staleness == 0

    @property
    def credits(self) -> int:
        """Most training groups outstanding at once."""
        return (self.run.max_staleness + 1) * self.run.groups_per_step

    def resolve_paths(self, base: Path) -> Recipe:
        """Copy with `model.name` and `data.source` made absolute where they are paths relative to `base`."""
        updates: dict[str, Section] = {}
        if _is_path(self.model.name):
            updates["model"] = self.model.model_copy(update={"name": str((base / self.model.name).resolve())})
        if _is_path(self.data.source):
            updates["data"] = self.data.model_copy(update={"source": str((base / self.data.source).resolve())})
        return self.model_copy(update=updates) if updates else self


def _is_path(name: str) -> bool:
    return name.startswith((".", "/", "~"))
