"""The engine protocol, and what passes through it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from tersely.types import WeightsLabel
from tersely.v1 import common_pb2, group_pb2

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What an engine is made with.

    Attributes:
        device: `auto`, `cpu`, `cuda` or `mps`.
        threads: CPU threads; none: all cores.
        batch_sequences: Most sequences decoded together where bit-exactness is not asked for.
        batch_tokens: Most tokens (prompts once, and each sequence's limit) held at a time; none: what fits in memory.
        lookup_tokens: Most tokens drafted per step by prompt look-up, where the engine can; 0: none.
    """

    device: str = "auto"
    threads: int | None = None
    batch_sequences: int = 16
    batch_tokens: int | None = None
    lookup_tokens: int = 0


HALF_TOLERANCE = 0.15
"""Most mean difference, nats, of unlikely tokens' logprobs in half precision.

Calibrated on the probe with SmolLM2-135M in bf16 on the CPU: right weights are off by 0.04 to 0.11, those from before
one step of sign descent by 0.25 (lr 1e-4) or 2.9 (lr 1e-3), noise of half its spread in one layer's output by 0.2 to
1.7. Less than that is not seen. Not measured on a GPU or on Metal.
"""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine can do, for the worker and for people.

    Attributes:
        name: Name under which the engine is registered.
        device: Device it runs on.
        threads: CPU threads it uses.
        bit_exact: Groups with required weights come out the same, bit for bit, in any process with as many threads.
        batch_sequences: Most sequences it decodes together.
        dtype: Arithmetic of the forward pass: `float32`, `bfloat16`, `float16` or `float64`; `none` without a model.
        in_flight: Whether `swap`, and the `score` that proves it, may come while groups are running.
        logprob_tolerance: Most difference, nats, between `score` and the learner's fp32 logprobs of the same weights;
            in half precision that of the mean over the tokens scored, elsewhere that of any token.
    """

    name: str
    device: str
    threads: int
    bit_exact: bool
    batch_sequences: int
    dtype: str = "float32"
    in_flight: bool = False
    logprob_tolerance: float = 1e-3

    @property
    def compares_mean(self) -> bool:
        """Whether the tolerance is for the mean: single unlikely tokens are far off in half precision."""
        return self.dtype in ("bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class GeneratedGroup:
    """A finished group: its completions in order of sample_index (without text), and the seconds it took."""

    prompt: group_pb2.PromptGroup
    completions: tuple[group_pb2.Completion, ...]
    seconds: float

    @property
    def sampled_tokens(self) -> int:
        """Sampled ids of all completions, stop tokens included."""
        return sum(len(completion.token_ids) for completion in self.completions)


class Engine(Protocol):
    """Samples completions under one set of weights at a time, step by step; one thread calls it."""

    @property
    def label(self) -> WeightsLabel | None:
        """Label of the weights held; none before `load`."""

    @property
    def running(self) -> int:
        """Groups admitted and not yet finished or cancelled."""

    @property
    def rows_running(self) -> int:
        """Sequences of them that have not ended; only these take places of the batch."""

    def load(self, model_folder: Path, label: WeightsLabel, weights: Mapping[str, Tensor]) -> None:
        """Builds the model from the folder's config and fills it; raises EngineFailed if they do not fit."""

    def swap(self, label: WeightsLabel, weights: Mapping[str, Tensor]) -> None:
        """Puts all tensors in place, or raises EngineFailed and keeps the old ones whole. Tied tensors come once.

        With groups running (`capabilities().in_flight` only) their caches are made again under the new weights and the
        tokens from here on get a version span of their own.
        """

    def has_room(self, group: group_pb2.PromptGroup) -> bool:
        """Whether `admit` may be called for it now; always true when nothing runs.

        Sequences that have ended take no room, though others of their group go on.
        """

    def admit(self, group: group_pb2.PromptGroup) -> None:
        """Takes a group in and prefills its prompt once; raises EngineFailed and forgets the group if it can't."""

    def step(self) -> list[GeneratedGroup]:
        """Some tokens for what runs; the groups whose last one ended, in the order they ended.

        A step may leave sequences without a token, as while prompts are prefilled or once a group has ended; whatever
        runs ends after a finite number of steps.
        """

    def cancel(self, group_id: str) -> None:
        """Forgets a running group at once; an unknown one is left alone."""

    def score(self, token_ids: Sequence[int]) -> list[float]:
        """Log-probability (temperature 1) of each id from the second on, given those before it.

        What runs is untouched; engines that can't swap in flight may ask that nothing runs.
        """

    def capabilities(self) -> Capabilities:
        """What this engine can do."""


@runtime_checkable
class Stages(Protocol):
    """What an engine has besides if it can prepare a swap while it works."""

    def stage(self, weights: Mapping[str, Tensor]) -> None:
        """Lays weights out beside those that serve, for the `swap` that is given this very mapping; any thread's call.

        Raises EngineFailed if nothing is loaded yet or they do not fit.
        """


def stage(engine: Engine, weights: Mapping[str, Tensor]) -> None:
    """Prepares a swap where the engine can and has a model already."""
    if isinstance(engine, Stages) and engine.label is not None:
        engine.stage(weights)


def generate(
    engine: Engine, groups: Sequence[group_pb2.PromptGroup], cancelled: Callable[[], bool] = lambda: False
) -> Iterator[GeneratedGroup]:
    """Runs groups through an engine on which nothing runs; yields each when it ends.

    Once `cancelled()` it stops between two steps; whatever ends it, nothing runs afterwards.
    """
    waiting = deque(groups)
    try:
        while (waiting or engine.running) and not cancelled():
            while waiting and engine.has_room(waiting[0]):
                engine.admit(waiting.popleft())
            yield from engine.step()
    finally:
        for group in groups:
            engine.cancel(group.group_id)


def is_bit_exact(group: group_pb2.PromptGroup) -> bool:
    """Whether a group must be decoded as a batch of its own: a training group of a synchronous run."""
    return group.HasField("required_weights") and group.purpose == common_pb2.GROUP_PURPOSE_TRAINING
