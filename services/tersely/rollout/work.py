"""A leased group on its way through a worker, and the message it becomes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tersely.queue import Lease
from tersely.rollout.engines.base import GeneratedGroup
from tersely.rollout.leases import LeaseDesk
from tersely.types import WeightsLabel
from tersely.v1 import common_pb2, group_pb2


@dataclass(slots=True, eq=False)
class Work:
    """A leased group.

    Attributes:
        lease: Its lease.
        group: The group.
        desk: Where the lease was taken, and ends.
        alone: Whether it was in a batch that failed, and is tried again with nothing beside it.
    """

    lease: Lease
    group: group_pb2.PromptGroup
    desk: LeaseDesk
    alone: bool = False

    @property
    def required(self) -> WeightsLabel | None:
        """The only weights that may generate it; None: any that are recent."""
        if not self.group.HasField("required_weights"):
            return None
        return WeightsLabel.from_proto(self.group.required_weights)

    @property
    def evaluates(self) -> bool:
        """Whether it is a held-out prompt."""
        return self.group.purpose == common_pb2.GROUP_PURPOSE_EVALUATION


def completion_group(
    done: GeneratedGroup, node_id: str, engine: str, decode: Callable[[Sequence[int]], str]
) -> group_pb2.CompletionGroup:
    """What goes to the scorers.

    Args:
        done: As the engine gave it.
        node_id: This node.
        engine: Name of the engine.
        decode: Ids to text without special tokens.
    """
    message = group_pb2.CompletionGroup(
        prompt=done.prompt, rollout_node_id=node_id, rollout_engine=engine, generate_seconds=done.seconds
    )
    for completion in done.completions:
        added = message.completions.add()
        added.CopyFrom(completion)
        added.text = decode(completion.token_ids)
    return message
