"""The loop of a rollout worker: lease, hold the right weights, generate, hand on.

A lease is held from XREADGROUP until its group is handed on, given back or struck; whatever ends the loop, what is
still held is given back, so that another worker begins at once instead of after the lease time.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import structlog
from google.protobuf.message import DecodeError

from tersely.errors import (
    EngineFailed,
    LeaseLost,
    QueueError,
    RedisOutOfMemory,
    RedisUnreachable,
    TerselyError,
    TrainerUnreachable,
    WeightsUnavailable,
)
from tersely.node.meter import RateMeter
from tersely.queue import Lease, LeaseKeeper, WorkStream
from tersely.rollout.engines.base import Engine, GeneratedGroup, is_bit_exact
from tersely.rollout.holder import WeightsHolder
from tersely.types import NodeId, WeightsLabel
from tersely.v1 import group_pb2

_log = structlog.get_logger(__name__)
T = TypeVar("T")

_MOST_UNAVAILABLE = 3
"""How often a group goes back because its weights can't be had, before that is a strike."""


class Report(Protocol):
    """Where the worker tells how it is; the heartbeat's `update`."""

    def __call__(
        self,
        *,
        state: str,
        detail: str,
        policy_version: int,
        tokens_per_second: float,
        groups_finished: int,
        leases: int,
        last_error: str,
    ) -> None:
        """Takes the newest values."""


class RolloutWorker:
    """Generates groups until told to stop.

    Args:
        node_id: Consumer name, and the name in what it generates.
        prompts: Stream to lease from.
        completions_key: Stream to hand on to.
        keeper: Renews leases; running.
        holder: Puts weights into the engine.
        engine: Samples.
        decode: Ids to text without special tokens.
        report: Takes the node's state.
        stopping: Set to drain.
        check_trainer: Raises TrainerUnreachable when the trainer has been away too long.
        redis_patience_seconds: How long one command is tried again while Redis does not answer or is full.
        pause_seconds: First pause between tries; doubles up to ten times as much.
    """

    def __init__(
        self,
        *,
        node_id: NodeId,
        prompts: WorkStream,
        completions_key: str,
        keeper: LeaseKeeper,
        holder: WeightsHolder,
        engine: Engine,
        decode: Callable[[Sequence[int]], str],
        report: Report,
        stopping: threading.Event,
        check_trainer: Callable[[], None] = lambda: None,
        redis_patience_seconds: float = 30.0,
        pause_seconds: float = 0.5,
    ) -> None:
        self._node_id = node_id
        self._prompts = prompts
        self._completions_key = completions_key
        self._keeper = keeper
        self._holder = holder
        self._engine = engine
        self._decode = decode
        self._report_to = report
        self._stopping = stopping
        self._check_trainer = check_trainer
        self._redis_patience = redis_patience_seconds
        self._pause = pause_seconds
        self._held: dict[bytes, Lease] = {}
        self._unavailable: Counter[str] = Counter()
        self._rate = RateMeter()
        self._last_error = ""
        self.groups_finished = 0
        self.leases_lost = 0

    def run(self) -> None:
        """Works until `stopping` is set; then gives back what it holds.

        Raises:
            RedisUnreachable, RedisOutOfMemory: For longer than the patience; join again.
            WeightsUnavailable: The trainer serves another run now; join again.
            TrainerUnreachable: The trainer has been away too long.
            EngineFailed: The first weights do not fit.
        """
        try:
            self._hold_first_version()
            while not self._stopping.is_set():
                self._check_trainer()
                leases = self._patiently(lambda: self._lease(1, block_seconds=1.0))
                if leases:
                    self._work(self._lease_companions(leases))
                else:
                    self._idle()
        finally:
            self._report("draining", "giving leases back")
            for lease in list(self._held.values()):
                self._return(lease)

    def _hold_first_version(self) -> None:
        while not self._stopping.is_set():
            self._check_trainer()
            self._report("starting", "waiting for the trainer's first version")
            label = self._holder.newest(timeout_seconds=1.0)
            if label is not None and self._try_hold(label):
                return

    def _idle(self) -> None:
        self._report("waiting", "for groups")
        newest = self._holder.newest()
        if newest is not None and newest.policy_version > self._holder.policy_version:
            self._try_hold(newest)

    def _try_hold(self, label: WeightsLabel) -> bool:
        """Holds a version if it can be had; a newer one may have replaced it meanwhile."""
        try:
            self._holder.hold(label)
        except (WeightsUnavailable, TrainerUnreachable) as error:
            _log.warning("weights_not_fetched", weights=str(label), kind=error.kind, message=error.message)
            self._last_error = str(error)
            self._stopping.wait(self._pause)
            return False
        return True

    def _lease(self, count: int, block_seconds: float) -> list[Lease]:
        leases = self._prompts.lease(count, block_seconds)
        for lease in leases:
            self._held[lease.entry_id] = lease
            self._keeper.hold(lease)
        return leases

    def _lease_companions(self, leases: list[Lease]) -> list[tuple[Lease, group_pb2.PromptGroup]]:
        """Parses the leased group and, where it may share a batch, leases more up to the engine's rows."""
        work = self._parse(leases)
        if not work or is_bit_exact(work[0][1]):
            return work
        group = work[0][1]
        more = self._engine.capabilities().batch_sequences // max(group.group_size, 1) - 1
        if more > 0:
            work += self._parse(self._patiently(lambda: self._lease(more, block_seconds=0.0)))
        return work

    def _parse(self, leases: list[Lease]) -> list[tuple[Lease, group_pb2.PromptGroup]]:
        work = []
        for lease in leases:
            try:
                work.append((lease, group_pb2.PromptGroup.FromString(lease.payload)))
            except DecodeError as error:
                self._strike(lease, "engine_failed", f"The entry is no PromptGroup: {error}")
        return work

    def _work(self, work: list[tuple[Lease, group_pb2.PromptGroup]]) -> None:
        newest: WeightsLabel | None = None
        by_label: dict[WeightsLabel, list[tuple[Lease, group_pb2.PromptGroup]]] = {}
        for lease, group in work:
            if group.HasField("required_weights"):
                label = WeightsLabel.from_proto(group.required_weights)
            else:
                newest = newest or self._holder.newest() or self._holder.label
                assert newest is not None
                label = newest
            by_label.setdefault(label, []).append((lease, group))
        for label, members in by_label.items():
            if self._stopping.is_set():
                return
            if self._hold_for(label, members):
                self._generate(members)

    def _hold_for(self, label: WeightsLabel, members: list[tuple[Lease, group_pb2.PromptGroup]]) -> bool:
        self._report("swapping", f"to {label}")
        try:
            self._holder.hold(label)
        except (WeightsUnavailable, TrainerUnreachable) as error:
            self._last_error = str(error)
            for lease, _ in members:
                self._unavailable[lease.group_id] += isinstance(error, WeightsUnavailable)
                if self._unavailable[lease.group_id] > _MOST_UNAVAILABLE:
                    del self._unavailable[lease.group_id]
                    self._strike(lease, error.kind, error.message)
                else:
                    _log.warning("group_given_back", group_id=lease.group_id, kind=error.kind, message=error.message)
                    self._return(lease)
            self._stopping.wait(self._pause)
            return False
        except TerselyError as error:
            for lease, _ in members:
                self._strike(lease, error.kind, error.message)
            return False
        return True

    def _generate(self, members: list[tuple[Lease, group_pb2.PromptGroup]]) -> None:
        """Generates groups that the weights held are right for; a failing batch is tried again one by one."""
        leases = {id(group): lease for lease, group in members}
        self._report("generating", f"{len(members)} groups with {self._holder.label}")

        def cancelled() -> bool:
            return self._stopping.is_set() or all(self._keeper.lost(lease) for lease in leases.values())

        try:
            for done in self._engine.generate([group for _, group in members], cancelled):
                self._hand_on(leases[id(done.prompt)], done)
                del leases[id(done.prompt)]
        except QueueError:
            raise
        except Exception as error:  # noqa: BLE001 - any failure of an engine is the group's strike, and logged whole
            _log.exception("generation_failed", groups=[group.group_id for _, group in members])
            left = [(lease, group) for lease, group in members if id(group) in leases]
            if len(members) > 1:
                for one in left:
                    if not self._stopping.is_set():
                        self._generate([one])
                return
            kind = error.kind if isinstance(error, TerselyError) else EngineFailed.kind
            for lease, _ in left:
                self._strike(lease, kind, f"{type(error).__name__}: {error}")
            return
        if not self._stopping.is_set():
            for lease in leases.values():
                self._drop_lost(lease)

    def _hand_on(self, lease: Lease, done: GeneratedGroup) -> None:
        message = group_pb2.CompletionGroup(
            prompt=done.prompt, rollout_node_id=self._node_id, generate_seconds=done.seconds
        )
        for completion in done.completions:
            added = message.completions.add()
            added.CopyFrom(completion)
            added.text = self._decode(completion.token_ids)
        self._rate.add(done.sampled_tokens)
        payload = message.SerializeToString()
        try:
            self._patiently(lambda: self._prompts.forward(lease, self._completions_key, payload))
        except LeaseLost:
            self._drop_lost(lease)
            return
        self._forget(lease)
        self._unavailable.pop(lease.group_id, None)
        self.groups_finished += 1
        _log.info(
            "group_generated",
            group_id=lease.group_id,
            tokens=done.sampled_tokens,
            seconds=round(done.seconds, 3),
            weights=str(self._holder.label),
        )
        self._report("generating", f"{len(self._held)} groups left")

    def _drop_lost(self, lease: Lease) -> None:
        self._forget(lease)
        self.leases_lost += 1
        _log.warning("lease_lost", group_id=lease.group_id, lost=self.leases_lost)

    def _strike(self, lease: Lease, kind: str, message: str) -> None:
        self._last_error = f"{lease.group_id}: {message}"
        quarantined = self._patiently(lambda: self._prompts.fail(lease, kind, message))
        self._forget(lease)
        _log.error("group_failed", group_id=lease.group_id, kind=kind, message=message, quarantined=quarantined)

    def _return(self, lease: Lease) -> None:
        try:
            self._prompts.give_back(lease)
        except QueueError as error:
            _log.warning("lease_not_given_back", group_id=lease.group_id, kind=error.kind, message=error.message)
        self._forget(lease)

    def _forget(self, lease: Lease) -> None:
        self._keeper.release(lease)
        self._held.pop(lease.entry_id, None)

    def _patiently(self, action: Callable[[], T]) -> T:
        """Runs a queue command, again while Redis does not answer or is full; a drain ends the waiting."""
        deadline, pause = time.monotonic() + self._redis_patience, self._pause
        while True:
            try:
                return action()
            except (RedisUnreachable, RedisOutOfMemory) as error:
                if time.monotonic() + pause > deadline or self._stopping.is_set():
                    raise
                self._last_error = str(error)
                _log.warning("waiting_for_redis", kind=error.kind, message=error.message, retry_seconds=pause)
                self._stopping.wait(pause)
                pause = min(2 * pause, 10 * self._pause)

    def _report(self, state: str, detail: str) -> None:
        self._report_to(
            state=state,
            detail=detail,
            policy_version=self._holder.policy_version,
            tokens_per_second=self._rate.per_second(),
            groups_finished=self.groups_finished,
            leases=len(self._held),
            last_error=self._last_error,
        )
