"""Copies of the model on every rank, by `torch.nn.parallel.DistributedDataParallel`."""

# No `from __future__ import annotations`: torch checks the type of the hook's argument at run time.
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from tersely.trainer.distributed.sync import SyncPoint


class Copies:
    """Every rank has all weights, masters and moments; gradients are summed before each optimizer step.

    On construction every rank takes over the weights of rank 0.

    Args:
        model: On its device; stays usable as it is.
        group: The ranks.
    """

    def __init__(self, model: torch.nn.Module, group: dist.ProcessGroup) -> None:
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._synced = DistributedDataParallel(SyncPoint(model), process_group=group)
        self._synced.register_comm_hook(group, _sum)
        # The reducer orders its buckets anew after its first pass. From here on the order of all sums is the same,
        # also after a resume.
        self.sum()
        for parameter in self._parameters:
            parameter.grad = None

    def open(self) -> None:
        """Nothing to do: the copies are whole."""

    def sum(self) -> None:
        """Sum over the ranks what is in the parameters' gradients."""
        self._synced().backward()


def _sum(
    group: dist.ProcessGroup,
    bucket: dist.GradBucket,  # type: ignore[name-defined]
) -> torch.futures.Future[torch.Tensor]:
    """The reducer's own hook averages; the loss is normalised by counts over all ranks, so its gradients add up."""
    work: Any = dist.all_reduce(bucket.buffer(), group=group, async_op=True)
    future: torch.futures.Future[torch.Tensor] = work.get_future().then(lambda done: done.value()[0])
    return future
