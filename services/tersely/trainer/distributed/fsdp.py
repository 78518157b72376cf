"""Parameters, gradients, masters and moments in shards, by FSDP2 (`torch.distributed.fsdp.fully_shard`)."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from tersely.trainer.distributed.sync import SyncPoint


class Shards:
    """Between steps every rank holds its part of everything; while gradients are computed, the whole weights.

    The head reads the output embedding outside of any module's forward pass, and ranks run unequal numbers of passes,
    so the weights are gathered once per optimizer step instead of once per layer and pass.

    Args:
        model: On its device. Its parameters become DTensors.
        group: The ranks.
    """

    def __init__(self, model: torch.nn.Module, group: dist.ProcessGroup) -> None:
        with torch.no_grad():
            for tensor in (*model.parameters(), *model.buffers()):
                dist.broadcast(tensor, src=0, group=group)
        device = next(model.parameters()).device
        mesh = DeviceMesh.from_group(group, device.type)
        for block in _blocks(model):
            fully_shard(block, mesh=mesh, reshard_after_forward=False)
        self._point = SyncPoint(model)
        self._root = fully_shard(self._point, mesh=mesh, reshard_after_forward=False)
        self._modules = [module for module in self._point.modules() if isinstance(module, FSDPModule)]
        for module in self._modules:
            # The loss is normalised by counts over all ranks, so its gradients add up instead of being averaged.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.open()
        self.sum()
        for parameter in self._parameters:
            parameter.grad = None

    def open(self) -> None:
        """Gather the weights."""
        self._root.set_requires_gradient_sync(False)
        self._root.set_reshard_after_backward(False)
        for module in self._modules:
            module.unshard()

    def close(self) -> None:
        """Keep this rank's shard of the weights again."""
        for module in self._modules:
            module.reshard()

    def sum(self) -> None:
        """Sum the gradients over the ranks, and keep this rank's shard of them and of the weights."""
        self._root.set_requires_gradient_sync(True)
        self._root.set_reshard_after_backward(True)
        self._point().backward()
        self.close()


def _blocks(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The repeated layers of a Hugging Face decoder: the longest list of modules that it has."""
    lists = [list(module) for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    return max(lists, key=len, default=[])
