"""Defects seen elsewhere, brought in on purpose by `learner.ablate` to measure what each costs. Never for a real run.

* `bf16_masters`: what the optimizer changes is kept in bf16, so updates smaller than half a step of a weight are lost.
  The moments stay fp32: only the loss of updates is measured.
* `no_stop_token`: a sampled stop token is in neither loss nor token counts, so nothing teaches when to stop.
* `recomputed_logprobs`: the ratio is to the learner's own log-probabilities at the start of the batch, and what the
  sampler recorded is ignored: staleness goes unseen.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

import structlog
import torch

from tersely.trainer.groups import GroupRows, TrainingGroup

log = structlog.get_logger(__name__)


class Ablations:
    """The chosen ones; each is announced in the log.

    Args:
        names: Of `learner.ablate`.
        stop_token_ids: What ends a completion.

    Raises:
        ValueError: if `no_stop_token` is chosen and no stop token is known.
    """

    def __init__(self, names: Collection[str], stop_token_ids: Collection[int]) -> None:
        self._names = frozenset(names)
        self._stops = frozenset(stop_token_ids)
        if "no_stop_token" in self._names and not self._stops:
            raise ValueError("no_stop_token needs the ids of the stop tokens")
        for name in sorted(self._names):
            log.warning("ablation", defect=name, effect="this run is worse on purpose")

    def batch(self, groups: Sequence[TrainingGroup]) -> list[TrainingGroup]:
        """The groups as the learner is to see them."""
        if "no_stop_token" not in self._names:
            return list(groups)
        return [self._without_stop(group) for group in groups]

    def behaviour(self, group: GroupRows) -> torch.Tensor:
        """[R, C] log-probabilities that ratios are taken to."""
        if "recomputed_logprobs" in self._names and group.start is not None:
            return group.start
        return group.behaviour

    @torch.no_grad()
    def masters(self, masters: Iterable[torch.Tensor]) -> None:
        """Called after every change of the masters."""
        if "bf16_masters" in self._names:
            for master in masters:
                master.copy_(master.to(torch.bfloat16))

    def _without_stop(self, group: TrainingGroup) -> TrainingGroup:
        lengths = [len(ids) - (ids[-1:] != () and ids[-1] in self._stops) for ids in group.completion_ids]
        return replace(
            group,
            completion_ids=tuple(ids[:n] for ids, n in zip(group.completion_ids, lengths, strict=True)),
            behaviour_logprobs=tuple(x[:n] for x, n in zip(group.behaviour_logprobs, lengths, strict=True)),
        )
