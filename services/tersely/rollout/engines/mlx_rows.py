"""Groups on their way through the MLX engine: what their samples have so far, and under which weights."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

from tersely.rollout.engines.base import GeneratedGroup
from tersely.rollout.engines.mlx_sampling import RowSampler
from tersely.types import WeightsLabel
from tersely.v1 import common_pb2, group_pb2


@dataclass(slots=True)
class Row:
    """One sample: its sampled ids, stop token included, their logprobs, and one span per label.

    Attributes:
        sample_index: Its place in the group.
        sampler: Draws its next token; made again when the weights change under it.
        reason: Why it ended; unspecified (0) while it runs.
    """

    sample_index: int
    sampler: RowSampler
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    spans: list[group_pb2.VersionSpan] = field(default_factory=list)
    reason: common_pb2.FinishReason.ValueType = common_pb2.FINISH_REASON_UNSPECIFIED

    def take(self, token: int, logprob: float, label: WeightsLabel) -> None:
        """Adds a token that was sampled under `label`."""
        weights = label.to_proto()
        if not self.spans or self.spans[-1].weights != weights:
            self.spans.append(group_pb2.VersionSpan(weights=weights, first_token=len(self.ids), token_count=0))
        self.spans[-1].token_count += 1
        self.ids.append(token)
        self.logprobs.append(logprob)


@dataclass(slots=True)
class RunningGroup:
    """An admitted group and its rows in order of sample_index."""

    prompt: group_pb2.PromptGroup
    rows: list[Row]
    began: float = field(default_factory=time.perf_counter)

    @property
    def rows_running(self) -> int:
        """Rows that have not ended."""
        return sum(not row.reason for row in self.rows)

    @property
    def ended(self) -> bool:
        """Whether every row has ended."""
        return self.rows_running == 0

    @property
    def is_sound(self) -> bool:
        """Whether every logprob so far is a number."""
        return all(math.isfinite(row.logprobs[-1]) for row in self.rows if row.logprobs)

    def finished(self) -> GeneratedGroup:
        """The group as the protocol hands it on."""
        completions = tuple(
            group_pb2.Completion(
                sample_index=row.sample_index,
                token_ids=row.ids,
                behaviour_logprobs=row.logprobs,
                finish_reason=row.reason,
                version_spans=row.spans,
            )
            for row in self.rows
        )
        return GeneratedGroup(self.prompt, completions, time.perf_counter() - self.began)


def row_sampler(group: group_pb2.PromptGroup, sample_index: int, position: int, wide: bool) -> RowSampler:
    """The sampler of one sample from a position on; `wide`: the CDF is summed in float64."""
    sampling = group.sampling
    seed = None if sample_index < sampling.greedy_samples else sampling.seed
    return RowSampler(sampling.temperature, seed, sample_index, position, wide)
