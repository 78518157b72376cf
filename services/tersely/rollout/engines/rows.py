"""What runs: groups, and the samples of each on their way."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from torch import Tensor

from tersely.grpo.seeds import uniform
from tersely.rollout.engines.base import GeneratedGroup
from tersely.rollout.engines.lookup import Drafter, PromptIndex
from tersely.types import WeightsLabel
from tersely.v1 import common_pb2, group_pb2


@dataclass(slots=True, eq=False)
class Row:
    """One sample on its way."""

    group: Group
    sample_index: int
    drafter: Drafter | None = None
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    spans: list[tuple[WeightsLabel, int]] = field(default_factory=list)
    """Label of the weights, and how many tokens they sampled, in order."""
    stopped: bool = False

    @property
    def ended(self) -> bool:
        """Whether its last token is sampled."""
        return self.stopped or len(self.ids) >= self.group.limit

    def uniform_at(self, ahead: int) -> float | None:
        """The number that decides the token so many places after the next; None for a greedy sample."""
        sampling = self.group.prompt.sampling
        if self.sample_index < sampling.greedy_samples:
            return None
        return uniform(sampling.seed, self.sample_index, len(self.ids) + ahead)

    def draft(self, most: int) -> list[int]:
        """Guesses of the next tokens but for the last that it may have."""
        if self.drafter is None:
            return []
        return self.drafter.draft(min(most, self.group.limit - len(self.ids) - 1))

    def take(self, token: int, logprob: float, label: WeightsLabel) -> None:
        """Adds a sampled token."""
        self.ids.append(token)
        self.logprobs.append(logprob)
        if self.spans and self.spans[-1][0] == label:
            label, count = self.spans.pop()
        else:
            count = 0
        self.spans.append((label, count + 1))
        self.stopped = token in self.group.stop_ids
        if self.drafter is not None:
            self.drafter.add(token)

    def completion(self) -> group_pb2.Completion:
        """It, ended, without text."""
        reason = common_pb2.FINISH_REASON_STOP if self.stopped else common_pb2.FINISH_REASON_LENGTH
        made = group_pb2.Completion(
            sample_index=self.sample_index,
            token_ids=self.ids,
            behaviour_logprobs=self.logprobs,
            finish_reason=reason,
        )
        first = 0
        for label, count in self.spans:
            made.version_spans.add(weights=label.to_proto(), first_token=first, token_count=count)
            first += count
        return made


@dataclass(slots=True, eq=False)
class Group:
    """A group on its way.

    Attributes:
        prompt: As it was asked for.
        logits: Logits after the prompt, 1 x vocabulary, until the first tokens are drawn from them.
        started: `time.perf_counter()` at its admission.
        stop_ids: Ids that end a completion.
        limit: Most tokens of a completion.
        rows: All samples, in order.
    """

    prompt: group_pb2.PromptGroup
    logits: Tensor | None
    started: float
    stop_ids: frozenset[int] = field(init=False)
    limit: int = field(init=False)
    rows: list[Row] = field(init=False)

    def __post_init__(self) -> None:
        self.stop_ids = frozenset(self.prompt.stop_token_ids)
        self.limit = self.prompt.sampling.max_completion_tokens
        self.rows = [Row(self, index) for index in range(self.prompt.group_size)]

    def use_lookup(self) -> None:
        """Lets every sample guess from the prompt and from what it said itself."""
        index = PromptIndex(self.prompt.prompt_token_ids)
        for row in self.rows:
            row.drafter = Drafter(index)

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return len(self.prompt.prompt_token_ids)

    @property
    def rows_running(self) -> int:
        """Samples that have not ended."""
        return sum(not row.ended for row in self.rows)

    @property
    def ended(self) -> bool:
        """Whether all samples have ended."""
        return self.rows_running == 0

    def finished(self) -> GeneratedGroup:
        """It, ended."""
        completions = tuple(row.completion() for row in self.rows)
        return GeneratedGroup(self.prompt, completions, time.perf_counter() - self.started)
