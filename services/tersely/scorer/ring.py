"""The ring's consumer: leases generated groups, adds rewards, hands them on to the trainer.

Scoring is a function of the group alone, so a group scored twice (an expired lease, a repeated add) gives the same
values; the trainer counts the first copy.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from threading import Event
from typing import TypeVar

import structlog
from google.protobuf.message import DecodeError

from tersely.errors import RedisOutOfMemory, RedisUnreachable
from tersely.queue import Lease, LeaseKeeper, WorkStream
from tersely.scorer.batch import inputs_of, score_batch
from tersely.scorer.rewards.base import Reward
from tersely.v1 import common_pb2, group_pb2

MALFORMED_GROUP = "malformed_group"
"""Error kind of an entry that is no usable CompletionGroup."""
SCORER_ERROR = "scorer_error"
"""Error kind of a failure of the scorer itself."""
BLOCK_SECONDS = 1.0
TOGETHER_SECONDS = 0.05
"""Groups are taken together, to save round trips, as long as scoring them takes no longer than this."""
MOST_TOGETHER = 8
PATIENCE_SECONDS = 60.0

log = structlog.get_logger(__name__)
T = TypeVar("T")
Report = Callable[[str, str], None]
"""Called with a state word and a detail for people whenever what the scorer does changes."""


class MalformedGroup(ValueError):
    """An entry that can't be scored, whatever the rewards."""


class RingScorer:
    """Consumes `completions` and feeds `scored`: one group at a time, or a few where they are scored in no time.

    Args:
        stream: The completions, as seen by this node.
        keeper: Renews the leases in hand; started by the caller.
        to_key: Stream of scored groups.
        node_id: This node, written into each scored group.
        rewards: Rewards of the recipe, in its order.
        evaluation: Rewards of evaluation groups.
        report: Told what goes on.
        same_run: Asked when there is nothing to do; False ends `run`.
        patience_seconds: How long to wait for a server that does not answer before `run` raises.
    """

    def __init__(
        self,
        stream: WorkStream,
        keeper: LeaseKeeper,
        to_key: str,
        node_id: str,
        *,
        rewards: Sequence[Reward],
        evaluation: Sequence[Reward],
        report: Report = lambda state, detail: None,
        same_run: Callable[[], bool] = lambda: True,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        self.groups_finished = 0
        self.last_error = ""
        self._stream = stream
        self._keeper = keeper
        self._to_key = to_key
        self._node_id = node_id
        self._rewards = rewards
        self._evaluation = evaluation
        self._report = report
        self._same_run = same_run
        self._patience_seconds = patience_seconds
        self._group_seconds = TOGETHER_SECONDS

    def run(self, stopping: Event) -> None:
        """Works until `stopping` is set, or the run is over; the groups in hand are finished first.

        Raises:
            RedisUnreachable: The server stayed away longer than the patience.
            QueueError: The server refuses this node.
        """
        self._patiently(self._stream.create, stopping)
        self._report("waiting", "for completions")
        while not stopping.is_set():
            leases = self._patiently(lambda: self._stream.lease(self._together(), BLOCK_SECONDS), stopping)
            if leases:
                self._process(self._without_suspects(leases, stopping), stopping)
                self._report("waiting", "for completions")
            elif not stopping.is_set() and not self._same_run():
                return

    def _together(self) -> int:
        return max(1, min(MOST_TOGETHER, int(TOGETHER_SECONDS / max(self._group_seconds, 1e-6))))

    def _without_suspects(self, leases: list[Lease], stopping: Event) -> list[Lease]:
        """A group whose lease expired may have killed its scorer, and those beside it must not go down with it."""
        if any(lease.expired_leases for lease in leases):
            for lease in leases[1:]:
                self._patiently(lambda lease=lease: self._stream.give_back(lease), stopping)  # type: ignore[misc]
            return leases[:1]
        return leases

    def _process(self, leases: Sequence[Lease], stopping: Event) -> None:
        for lease in leases:
            self._keeper.hold(lease)
        try:
            finished = [(lease, payload) for lease in leases if (payload := self._scored(lease, stopping)) is not None]
            lost = self._patiently(lambda: self._stream.forward_many(finished, self._to_key), stopping)
            if lost is None:
                return
            for lease in lost:
                log.warning("result_dropped", group_id=lease.group_id, reason="the lease was lost")
            self.groups_finished += len(finished) - len(lost)
        finally:
            for lease in leases:
                self._keeper.release(lease)

    def _scored(self, lease: Lease, stopping: Event) -> bytes | None:
        """The scored group; None when it can't be had, which is then reported."""
        self._report("scoring", f"group {lease.group_id}")
        began = time.perf_counter()
        try:
            payload = self.score(lease).SerializeToString()
        except MalformedGroup as error:
            self._fail(lease, MALFORMED_GROUP, str(error), stopping)
        except Exception as error:
            log.exception("scoring_failed", group_id=lease.group_id)
            self._fail(lease, SCORER_ERROR, f"{type(error).__name__}: {error}", stopping)
        else:
            self._group_seconds += 0.2 * (time.perf_counter() - began - self._group_seconds)
            return payload
        return None

    def score(self, lease: Lease) -> group_pb2.ScoredGroup:
        """The group with its rewards.

        Raises:
            MalformedGroup: The payload is no usable CompletionGroup.
        """
        began = time.perf_counter()
        group = parse_group(lease.payload)
        evaluated = group.prompt.purpose == common_pb2.GROUP_PURPOSE_EVALUATION
        rows = score_batch(inputs_of(group), self._evaluation if evaluated else self._rewards)
        return group_pb2.ScoredGroup(
            group=group,
            rewards=[group_pb2.CompletionRewards(rewards=row) for row in rows],
            scorer_node_id=self._node_id,
            score_seconds=time.perf_counter() - began,
        )

    def _fail(self, lease: Lease, kind: str, message: str, stopping: Event) -> None:
        self.last_error = f"{kind}: {message}"
        quarantined = self._patiently(lambda: self._stream.fail(lease, kind, message), stopping)
        log.warning("group_failed", group_id=lease.group_id, error_kind=kind, error=message, quarantined=quarantined)

    def _patiently(self, action: Callable[[], T], stopping: Event) -> T | None:
        """Repeats an action while the server is away or full; None when told to stop meanwhile (the lease expires)."""
        began, pause = time.monotonic(), 0.1
        while True:
            try:
                return action()
            except (RedisUnreachable, RedisOutOfMemory) as error:
                away = isinstance(error, RedisUnreachable)
                if away and time.monotonic() - began > self._patience_seconds:
                    raise
                self.last_error = f"{error.kind}: {error.message}"
                self._report("waiting", error.message)
                log.warning("queue_not_ready", kind=error.kind, error=error.message, retry_seconds=pause)
                if stopping.wait(pause):
                    return None
                pause = min(2 * pause, 5.0)


def parse_group(payload: bytes) -> group_pb2.CompletionGroup:
    """Reads a CompletionGroup and checks what lengths depend on.

    Raises:
        MalformedGroup: It can't be read, lacks completions, or how one of them ended does not fit its ids.
    """
    try:
        group = group_pb2.CompletionGroup.FromString(payload)
    except DecodeError:
        raise MalformedGroup(f"{len(payload)} bytes that are no CompletionGroup") from None
    if not group.completions or len(group.completions) != group.prompt.group_size:
        raise MalformedGroup(f"{len(group.completions)} completions for a group size of {group.prompt.group_size}")
    stops = set(group.prompt.stop_token_ids)
    for completion in group.completions:
        where = f"completion {completion.sample_index}"
        if not completion.token_ids:
            raise MalformedGroup(f"{where} has no tokens")
        if completion.finish_reason == common_pb2.FINISH_REASON_UNSPECIFIED:
            raise MalformedGroup(f"{where} does not say why it ended")
        stopped = completion.finish_reason == common_pb2.FINISH_REASON_STOP
        if stopped and stops and completion.token_ids[-1] not in stops:
            raise MalformedGroup(f"{where} ended by a stop token, but its last id {completion.token_ids[-1]} is none")
    return group
