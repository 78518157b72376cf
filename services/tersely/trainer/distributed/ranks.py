"""What the learner asks of the processes it shares a step with; one process is the plain case.

Every rank gets the whole batch, computes the gradient of its share, and makes the same optimizer step.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch


class Ranks(Protocol):
    """The processes of one learner.

    Collective: `adopt`, `weights`, leaving `gradients`, `sums`, `largest`, and reading a whole tensor of an adopted
    model (`tensors.whole`) must be done by all ranks in the same order.
    """

    @property
    def rank(self) -> int:
        """Number of this process, from 0."""

    @property
    def size(self) -> int:
        """How many processes there are."""

    def share(self, costs: Sequence[int]) -> list[int]:
        """Indices of the items of a batch that are this rank's, ascending; the same split on all ranks.

        Args:
            costs: Of every item of the batch, in any unit.
        """

    def adopt(self, model: torch.nn.Module) -> None:
        """Copy or shard a model that is on its device, with the weights of rank 0.

        Once, before anything keeps its parameters; which parameters are trained must be settled.
        """

    def gradients(self) -> AbstractContextManager[None]:
        """Inside, the weights may be read and any number of backward passes run, of this rank's share alone.

        On leaving, the gradients in the model's parameters are summed over the ranks.
        """

    def weights(self) -> AbstractContextManager[None]:
        """Inside, the whole weights may be read, and nothing else happens."""

    def sums(self, values: Sequence[float]) -> list[float]:
        """Each value summed over the ranks."""

    def largest(self, value: float) -> float:
        """The largest value of any rank."""

    def grad_norm(self, gradients: Sequence[torch.Tensor]) -> torch.Tensor:
        """L2 norm of the whole gradient, a scalar, from the tensors that this rank's optimizer has."""


class SingleRank:
    """One process."""

    rank = 0
    size = 1

    def share(self, costs: Sequence[int]) -> list[int]:
        """All of them."""
        return list(range(len(costs)))

    def adopt(self, model: torch.nn.Module) -> None:
        """Nothing to do."""

    def gradients(self) -> AbstractContextManager[None]:
        """Nothing to sum."""
        return nullcontext()

    def weights(self) -> AbstractContextManager[None]:
        """They are whole."""
        return nullcontext()

    def sums(self, values: Sequence[float]) -> list[float]:
        """The values."""
        return list(values)

    def largest(self, value: float) -> float:
        """The value."""
        return value

    def grad_norm(self, gradients: Sequence[torch.Tensor]) -> torch.Tensor:
        """Their norm."""
        return torch.nn.utils.get_total_norm(gradients)


def deal(costs: Sequence[int], size: int) -> list[list[int]]:
    """Items onto ranks so that none has much more than others: each, dearest first, to the rank with the least so far.

    Args:
        costs: Of each item.
        size: Number of ranks; those beyond the number of items get none.

    Returns:
        Per rank its indices, ascending. Deterministic: ties go to the lower index and the lower rank.
    """
    shares: list[list[int]] = [[] for _ in range(size)]
    loads = [(0, rank) for rank in range(size)]
    for index in sorted(range(len(costs)), key=lambda item: (-costs[item], item)):
        load, rank = heapq.heappop(loads)
        shares[rank].append(index)
        heapq.heappush(loads, (load + costs[index], rank))
    return [sorted(share) for share in shares]
