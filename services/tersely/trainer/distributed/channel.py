"""Rank 0 tells the other ranks what to do next: a command, a step, bytes, and tensors where a command has some.

Everything is broadcast as plain CPU tensors (numbers, protobuf, JSON), by a group that may wait for days.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import torch
import torch.distributed as dist

from tersely.trainer.distributed.group import TorchRanks, rank_errors


class Command(IntEnum):
    """What all ranks do next."""

    BEGIN = 1
    """Make the learner: JSON with recipe and stop token ids."""
    TRAIN = 2
    """One step: BatchFormed."""
    PUBLISHED = 3
    """Gather the weights."""
    STATE = 4
    """Gather the state."""
    LOAD_STATE = 5
    """Take over a state: JSON with its facts and the names, shapes and types of the tensors that follow."""
    STOP = 6
    """End in good order."""
    PROBE = 7
    """Compute the log-probs of the probe."""


@dataclass(frozen=True, slots=True)
class Message:
    """One command with what belongs to it; `step` is 0 where there is none."""

    command: Command
    step: int = 0
    payload: bytes = b""


class Channel:
    """Both ends: rank 0 sends, the others receive, in the same order.

    Args:
        ranks: The group.
    """

    def __init__(self, ranks: TorchRanks) -> None:
        self._ranks = ranks

    def send(self, message: Message) -> None:
        """Tell all other ranks; waits until they have heard.

        Raises:
            RankLost: if one is gone.
        """
        self._broadcast(torch.tensor([message.command, message.step, len(message.payload)]))
        if message.payload:
            self._broadcast(torch.frombuffer(bytearray(message.payload), dtype=torch.uint8))

    def receive(self) -> Message:
        """Wait for the next command.

        Raises:
            RankLost: if rank 0 is gone.
        """
        head = self._broadcast(torch.zeros(3, dtype=torch.int64))
        command, step, size = (int(number) for number in head)
        payload = self._broadcast(torch.empty(size, dtype=torch.uint8)) if size else None
        return Message(Command(command), step, b"" if payload is None else payload.numpy().tobytes())

    def send_state(self, tensors: Mapping[str, torch.Tensor], meta: Mapping[str, Any]) -> None:
        """`LOAD_STATE` with its tensors."""
        names = sorted(tensors)
        kinds = [[name, list(tensors[name].shape), str(tensors[name].dtype).removeprefix("torch.")] for name in names]
        header = json.dumps({"meta": dict(meta), "tensors": kinds})
        self.send(Message(Command.LOAD_STATE, payload=header.encode()))
        for name in names:
            self._broadcast(tensors[name].contiguous())

    def receive_state(self, header: bytes) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """What `send_state` sends after its header."""
        facts = json.loads(header)
        tensors = {
            name: self._broadcast(torch.empty(shape, dtype=getattr(torch, dtype)))
            for name, shape, dtype in facts["tensors"]
        }
        return tensors, facts["meta"]

    def meet(self) -> None:
        """Returns when all ranks are here."""
        with rank_errors():
            dist.barrier(group=self._ranks.idle)

    def _broadcast(self, tensor: torch.Tensor) -> torch.Tensor:
        with rank_errors():
            dist.broadcast(tensor, src=0, group=self._ranks.idle)
        return tensor
