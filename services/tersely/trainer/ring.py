"""The trainer's end of the ring: sends prompt groups, takes scored ones, counts what is on the way."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import redis

from tersely.config.schema import QueueSection
from tersely.queue.connect import redis_errors
from tersely.queue.decisions import Decisions
from tersely.queue.entries import Lease, StreamDepth
from tersely.queue.keys import RunKeys
from tersely.queue.quarantine import QuarantineReader
from tersely.queue.stream import WorkStream
from tersely.types import GroupId, RunId
from tersely.v1 import common_pb2, group_pb2

EVALUATION_PREFIX = "eval-"
"""Evaluation groups carry it in their id, so that they can be told from training groups without reading them."""

_MOST_LOGPROB = 0.01  # rounding; a probability is at most 1
_TRAINER_LEASE_SECONDS = 86_400.0  # one consumer, which keeps what it took until the batch is logged


@dataclass(frozen=True, slots=True)
class Arrival:
    """A scored group with the lease that holds it."""

    lease: Lease
    group: group_pb2.ScoredGroup


class Ring:
    """Streams of one run as the trainer sees them.

    Args:
        client: Connection that nobody else blocks on.
        run_id: The run.
        queue: Lease settings.
    """

    def __init__(self, client: redis.Redis, run_id: RunId, queue: QueueSection) -> None:
        self._client = client
        self.keys = RunKeys(run_id)

        def stream(key: str, group: str, lease_seconds: float, max_expired_leases: int) -> WorkStream:
            return WorkStream(
                client,
                key,
                group,
                "trainer",
                lease_seconds=lease_seconds,
                max_strikes=queue.max_strikes,
                max_expired_leases=max_expired_leases,
                quarantine_key=self.keys.quarantine,
            )

        patience = queue.max_expired_leases
        self.prompts = stream(self.keys.prompts, "rollout", queue.lease_seconds, patience)
        self.evaluation_prompts = stream(self.keys.evaluation_prompts, "rollout", queue.lease_seconds, patience)
        self.completions = stream(self.keys.completions, "scorer", queue.lease_seconds, patience)
        # The trainer looks again at what it holds after each failure; that is no sign of poison.
        self.scored = stream(self.keys.scored, "trainer", _TRAINER_LEASE_SECONDS, sys.maxsize)
        self._quarantine = QuarantineReader(client, self.keys.quarantine)
        self.decisions = Decisions(client, self.keys)

    def create(self) -> None:
        """Makes the streams and their consumer groups where they are missing."""
        for stream in (self.prompts, self.evaluation_prompts, self.completions, self.scored):
            stream.create()

    def send(self, group: group_pb2.PromptGroup) -> None:
        """Puts a group on its way."""
        self.prompts.add(GroupId(group.group_id), group.SerializeToString())

    def send_many(self, groups: Sequence[group_pb2.PromptGroup]) -> None:
        """Puts groups on their way in their order, all or none."""
        self.prompts.add_many([(GroupId(group.group_id), group.SerializeToString()) for group in groups])

    def send_evaluation(self, groups: Sequence[group_pb2.PromptGroup]) -> None:
        """Puts held-out prompts where workers look when there is no training group for them; all or none."""
        self.evaluation_prompts.add_many([(GroupId(group.group_id), group.SerializeToString()) for group in groups])

    def take(self, count: int, block_seconds: float) -> list[Arrival]:
        """Scored groups that have arrived; unreadable ones get a strike and end in the quarantine."""
        return self._read(self.scored.lease(count, block_seconds))

    def take_again(self) -> list[Arrival]:
        """Groups that an earlier trainer of this run took and did not acknowledge."""
        return self._read(self.scored.pending_of_consumer())

    def acknowledge(self, leases: list[Lease]) -> None:
        """Lets go of groups whose outcome is in the log."""
        if leases:
            self.scored.ack(leases)

    def reject(self, lease: Lease, error_kind: str, message: str) -> None:
        """Reports a scored group that can't be used; the third time it goes to the quarantine."""
        self.scored.fail(lease, error_kind, message)

    def newly_quarantined(self) -> list[group_pb2.QuarantinedGroup]:
        """Groups set aside since the last call."""
        return self._quarantine.read()

    def depths(self) -> dict[str, StreamDepth]:
        """Waiting and leased entries per stream."""
        return {
            "prompts": self.prompts.depth(),
            "eval_prompts": self.evaluation_prompts.depth(),
            "completions": self.completions.depth(),
            "scored": self.scored.depth(),
        }

    def training_groups_in_streams(self) -> set[GroupId]:
        """Ids of training groups now in any of the streams."""
        found = self._in_streams(self.keys.prompts, self.keys.completions, self.keys.scored)
        return {group_id for group_id in found if not group_id.startswith(EVALUATION_PREFIX)}

    def evaluation_groups_in_streams(self) -> set[GroupId]:
        """Ids of evaluation groups now in any of the streams."""
        found = self._in_streams(self.keys.evaluation_prompts, self.keys.completions, self.keys.scored)
        return {group_id for group_id in found if group_id.startswith(EVALUATION_PREFIX)}

    def _in_streams(self, *keys: str) -> set[GroupId]:
        """Ids of all groups now in any of these streams.

        The streams are read in the direction of travel, so that a group on the move is seen at least once.
        """
        found: set[GroupId] = set()
        with redis_errors():
            for key in keys:
                entries: Any = self._client.xrange(key)
                for _, fields in entries:
                    group_id = fields.get(b"g", b"").decode(errors="replace")
                    if group_id:
                        found.add(GroupId(group_id))
        return found

    def _read(self, leases: list[Lease]) -> list[Arrival]:
        arrivals = []
        for lease in leases:
            try:
                group = group_pb2.ScoredGroup.FromString(lease.payload)
                check_scored_group(group)
            except ValueError as error:  # protobuf's DecodeError is one
                self.reject(lease, "entry_invalid", f"{type(error).__name__}: {error}")
                continue
            arrivals.append(Arrival(lease, group))
        return arrivals


def check_scored_group(scored: group_pb2.ScoredGroup) -> None:
    """Raises ValueError when a group does not hold together: nobody trains on half a group."""
    prompt, completions = scored.group.prompt, scored.group.completions
    if len(completions) != prompt.group_size or len(scored.rewards) != prompt.group_size:
        raise ValueError(
            f"group of {prompt.group_size} came back with {len(completions)} completions, {len(scored.rewards)} rewards"
        )
    for index, completion in enumerate(completions):
        if completion.sample_index != index:
            raise ValueError(f"sample {completion.sample_index} stands at place {index}")
        tokens = len(completion.token_ids)
        if tokens == 0 or tokens > prompt.sampling.max_completion_tokens:
            raise ValueError(f"sample {index} has {tokens} tokens, limit {prompt.sampling.max_completion_tokens}")
        if len(completion.behaviour_logprobs) != tokens:
            raise ValueError(f"sample {index} has {len(completion.behaviour_logprobs)} logprobs for {tokens} tokens")
        if not all(math.isfinite(value) and value <= _MOST_LOGPROB for value in completion.behaviour_logprobs):
            raise ValueError(f"sample {index} has a logprob that can't be one")
        if not all(math.isfinite(reward.value) for reward in scored.rewards[index].rewards if reward.HasField("value")):
            raise ValueError(f"sample {index} has a reward that is no number")
        if sum(span.token_count for span in completion.version_spans) != tokens:
            raise ValueError(f"sample {index}: its version spans do not cover its {tokens} tokens")
        stopped = completion.token_ids[-1] in prompt.stop_token_ids
        if stopped != (completion.finish_reason == common_pb2.FINISH_REASON_STOP):
            raise ValueError(f"sample {index}: finish reason and last token contradict each other")
