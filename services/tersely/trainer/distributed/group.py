"""The ranks of a learner as a process group of torch.distributed, as torchrun starts them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Literal

import structlog
import torch

from tersely.errors import ConfigValue, RankLost
from tersely.trainer.distributed.launch import local_rank, world_size
from tersely.trainer.distributed.ranks import deal
from tersely.trainer.distributed.tensors import whole

if not torch.distributed.is_available():
    raise ConfigValue(
        "WORLD_SIZE is above 1, but this build of torch has no torch.distributed.",
        "Install a build that has it, or unset WORLD_SIZE to train with one process.",
    )

import torch.distributed as dist

from tersely.trainer.distributed.ddp import Copies
from tersely.trainer.distributed.fsdp import Shards

log = structlog.get_logger(__name__)

WORK_TIMEOUT = timedelta(minutes=20)
"""Longest time that ranks may be apart within one step; covers the slowest share of a batch."""

IDLE_TIMEOUT = timedelta(days=30)
"""Longest time between steps: the trainer may wait for groups."""


class TorchRanks:
    """The view of one process on all of them.

    Args:
        work: Group of all ranks, by which gradients go.
        idle: Group of all ranks on CPU tensors that may wait long, by which commands go.
    """

    def __init__(self, work: dist.ProcessGroup, idle: dist.ProcessGroup) -> None:
        self._work = work
        self.idle = idle
        self.rank = dist.get_rank(work)
        self.size = dist.get_world_size(work)
        self._parallel: Literal["ddp", "fsdp"] = "ddp"
        self._model: Copies | Shards | None = None

    @property
    def sharded(self) -> bool:
        """Whether reading whole weights or the state takes all ranks."""
        return self._parallel == "fsdp"

    def choose(self, parallel: Literal["ddp", "fsdp"]) -> None:
        """How `adopt` will share a model."""
        self._parallel = parallel

    def share(self, costs: Sequence[int]) -> list[int]:
        """What `deal` gives to this rank."""
        return deal(costs, self.size)[self.rank]

    def adopt(self, model: torch.nn.Module) -> None:
        """Copy or shard it.

        Raises:
            ConfigValue: if the model is on a device that ranks can't share.
            RankLost: if another rank is gone.
        """
        device = next(model.parameters()).device
        if device.type not in ("cpu", "cuda"):
            raise ConfigValue(
                f"Several processes can't train on the device {device.type}.",
                "Set learner.device to cpu or cuda, or train with one process.",
            )
        with rank_errors():
            self._model = (Shards if self._parallel == "fsdp" else Copies)(model, self._work)
        log.info("model_shared", parallel=self._parallel, rank=self.rank, ranks=self.size)

    @contextmanager
    def gradients(self) -> Iterator[None]:
        """Inside, backward passes of this rank's share; on leaving, the sum over all ranks.

        Raises:
            RankLost: if another rank is gone.
        """
        assert self._model is not None, "adopt() comes first"
        with rank_errors():
            self._model.open()
        yield
        with rank_errors():
            self._model.sum()

    @contextmanager
    def weights(self) -> Iterator[None]:
        """Inside, the whole weights are on every rank; takes all ranks if they are sharded.

        Raises:
            RankLost: if another rank is gone.
        """
        if not isinstance(self._model, Shards):
            yield
            return
        with rank_errors():
            self._model.open()
        yield
        self._model.close()

    def sums(self, values: Sequence[float]) -> list[float]:
        """Each value summed over the ranks, in float64."""
        return self._reduce(values, dist.ReduceOp.SUM)

    def largest(self, value: float) -> float:
        """The largest value of any rank."""
        return self._reduce([value], dist.ReduceOp.MAX)[0]

    def grad_norm(self, gradients: Sequence[torch.Tensor]) -> torch.Tensor:
        """L2 norm of the whole gradient, the same bits on all ranks."""
        with rank_errors():
            return whole(torch.nn.utils.get_total_norm(gradients))

    def leave(self) -> None:
        """Ends the group in good order; only when all ranks do."""
        dist.destroy_process_group()

    def _reduce(self, values: Sequence[float], operation: dist.ReduceOp.RedOpType) -> list[float]:
        tensor = torch.tensor(values, dtype=torch.float64)
        with rank_errors():
            dist.all_reduce(tensor, operation, group=self.idle)
        result: list[float] = tensor.tolist()
        return result


def join_ranks() -> TorchRanks:
    """Waits for the other processes that torchrun started; gloo for CPU tensors, NCCL for CUDA ones.

    Raises:
        ConfigValue: if a box has more processes than GPUs (and has any).
        RankLost: if the others don't come in time.
    """
    backend = "gloo"
    if torch.cuda.is_available():
        if local_rank() >= torch.cuda.device_count():
            raise ConfigValue(
                f"Process {local_rank()} of this box has no GPU: there are {torch.cuda.device_count()}.",
                "Start torchrun with --nproc-per-node of at most the number of GPUs.",
            )
        torch.cuda.set_device(local_rank())
        backend = "cpu:gloo,cuda:nccl"
    # Two processes of a box find each other by loopback also where the host's own name leads nowhere.
    if os.environ["MASTER_ADDR"] in ("localhost", "127.0.0.1"):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", _loopback())
    log.info("joining", rank=os.environ["RANK"], ranks=world_size(), backend=backend)
    with rank_errors():
        dist.init_process_group(backend, timeout=WORK_TIMEOUT)
        idle = dist.new_group(backend="gloo", timeout=IDLE_TIMEOUT)
    work = dist.group.WORLD
    assert work is not None
    assert isinstance(idle, dist.ProcessGroup)
    return TorchRanks(work, idle)


@contextmanager
def rank_errors() -> Iterator[None]:
    """What torch.distributed raises when a rank is gone, as RankLost."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        said = str(error).strip() or type(error).__name__
        # Gloo puts the line of its source before what happened, and advice after it.
        reason = re.sub(r"^\[[^\]]*\]\s*", "", said.splitlines()[0]).split(". ")[0][:300].rstrip(".")
        raise RankLost(
            f"The other processes of the learner can't be reached any more: {reason}.",
            "Look for the first error among the ranks, mend that, and start the same command again with --resume.",
        ) from None


def _loopback() -> str:
    import psutil

    names = [
        name
        for name, addresses in psutil.net_if_addrs().items()
        if any(address.address == "127.0.0.1" for address in addresses)
    ]
    return names[0] if names else "lo"
