"""The engine protocol, and what passes through it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

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
    """

    device: str = "auto"
    threads: int | None = None
    batch_sequences: int = 16


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine can do, for the worker and for people.

    Attributes:
        name: Name under which the engine is registered.
        device: Device it runs on.
        threads: CPU threads it uses.
        bit_exact: Groups with required weights come out the same, bit for bit, in any process with as many threads.
        batch_sequences: Most sequences it decodes together.
    """

    name: str
    device: str
    threads: int
    bit_exact: bool
    batch_sequences: int


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
    """Samples completions under exactly one set of weights at a time."""

    @property
    def label(self) -> WeightsLabel | None:
        """Label of the weights held; none before `load`."""

    def load(self, model_folder: Path, label: WeightsLabel, weights: Mapping[str, Tensor]) -> None:
        """Builds the model from the folder's config and fills it; raises EngineFailed if they do not fit."""

    def swap(self, label: WeightsLabel, weights: Mapping[str, Tensor]) -> None:
        """Puts all tensors in place, or raises EngineFailed and keeps the old weights whole. Tied tensors come once."""

    def generate(
        self, groups: Sequence[group_pb2.PromptGroup], cancelled: Callable[[], bool]
    ) -> Iterator[GeneratedGroup]:
        """Yields each group when its last completion ends; stops early, between two tokens, once `cancelled()`."""

    def capabilities(self) -> Capabilities:
        """What this engine can do."""


def is_bit_exact(group: group_pb2.PromptGroup) -> bool:
    """Whether a group must be decoded as a batch of its own: a training group of a synchronous run."""
    return group.HasField("required_weights") and group.purpose == common_pb2.GROUP_PURPOSE_TRAINING


def plan_batches(
    groups: Sequence[group_pb2.PromptGroup], batch_sequences: int
) -> Iterator[list[group_pb2.PromptGroup]]:
    """Splits groups, in order, into batches of at most `batch_sequences` rows; bit-exact and large ones stay alone."""
    batch: list[group_pb2.PromptGroup] = []
    for group in groups:
        rows = sum(member.group_size for member in batch)
        if batch and (is_bit_exact(group) or rows + group.group_size > batch_sequences):
            yield batch
            batch = []
        batch.append(group)
        if is_bit_exact(group):
            yield batch
            batch = []
    if batch:
        yield batch
