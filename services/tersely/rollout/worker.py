"""The loop of a rollout worker: groups are leased as room frees, decoded together, and leave when they are finished.

Every turn of the loop is short: lease what can be admitted soon, change the weights if it is time, admit, one step of
the engine, hand on what that finished. Weights come in the background meanwhile (`fetching.py`).
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import structlog

from tersely.errors import EngineFailed, TerselyError, WeightsUnavailable
from tersely.node.meter import RateMeter
from tersely.queue import Lease
from tersely.rollout.engines.base import Engine, GeneratedGroup
from tersely.rollout.holder import WeightsHolder
from tersely.rollout.intake import Intake
from tersely.rollout.leases import LeaseDesk
from tersely.rollout.work import Work, completion_group
from tersely.types import NodeId, WeightsLabel

_log = structlog.get_logger(__name__)

_MOST_UNAVAILABLE = 3
"""How often a group goes back because its weights can't be had, before that is a strike."""

_LOOK_SECONDS = 0.05
"""How soon a worker with something to wait for looks again."""

_MOST_STRUCK = 3
"""Different groups struck with none finished between, after which the fault is the worker's and it ends."""


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
        swap_pause_seconds: float,
    ) -> None:
        """Takes the newest values."""


class RolloutWorker:
    """Generates groups until told to stop.

    Args:
        node_id: The name in what it generates.
        leases: Takes and ends leases of training groups.
        evaluations: The same for held-out prompts, which are generated when there is no training group.
        holder: Puts weights into the engine.
        engine: Samples; called from the thread that runs `run` only.
        decode: Ids to text without special tokens.
        report: Takes the node's state.
        stopping: Set to drain.
        swap: `drain`: running groups are finished by the version that began them; `inflight`: they go on under the new
            one where engine and groups allow it.
        max_staleness: Versions that the weights held may be behind while groups without required weights are taken.
        check_trainer: Raises TrainerUnreachable when the trainer has been away too long.
        pause_seconds: Pause after weights that could not be had.
    """

    def __init__(
        self,
        *,
        node_id: NodeId,
        leases: LeaseDesk,
        evaluations: LeaseDesk | None = None,
        holder: WeightsHolder,
        engine: Engine,
        decode: Callable[[Sequence[int]], str],
        report: Report,
        stopping: threading.Event,
        swap: Literal["drain", "inflight"] = "drain",
        max_staleness: int = 0,
        check_trainer: Callable[[], None] = lambda: None,
        pause_seconds: float = 0.5,
    ) -> None:
        self._node_id = node_id
        self._intake = Intake(leases, evaluations, engine)
        self._waiting = self._intake.waiting
        self._holder = holder
        self._engine = engine
        self._engine_name = engine.capabilities().name
        self._decode = decode
        self._report_to = report
        self._stopping = stopping
        self._in_flight = swap == "inflight" and engine.capabilities().in_flight
        self._max_staleness = max_staleness
        self._check_trainer = check_trainer
        self._pause = pause_seconds
        self._running: dict[str, Work] = {}
        self._struck: set[str] = set()
        self._draining = False
        self._unavailable: Counter[str] = Counter()
        self._rate = RateMeter()
        self.groups_finished = 0

    def run(self) -> None:
        """Works until `stopping` is set; then gives back what it holds.

        Raises:
            RedisUnreachable, RedisOutOfMemory: For longer than the patience; join again.
            WeightsUnavailable: The trainer serves another run now; join again.
            TrainerUnreachable: The trainer has been away too long.
            EngineFailed, WeightsNotApplied: The weights do not fit, the engine does not sample from them, or it failed
                one group after the other.
        """
        try:
            self._hold_current_version()
            while not self._stopping.is_set():
                self._check_trainer()
                self._turn()
        finally:
            self._report("draining", "giving leases back")
            self._intake.give_all_back()
            for group_id in self._running:
                self._engine.cancel(group_id)

    def _hold_current_version(self) -> None:
        while not self._stopping.is_set():
            self._check_trainer()
            newest = self._holder.newest()
            if newest is not None and newest == self._holder.label:
                return
            self._report("starting", "waiting for the trainer's newest version")
            if self._holder.due(None):
                self._holder.apply()
            else:
                self._holder.wait(_LOOK_SECONDS)

    def _turn(self) -> None:
        for work in [*self._waiting, *self._running.values()]:
            if work.desk.lost(work.lease):
                self._drop(work)
        self._lease_more()
        self._change_weights()
        self._admit()
        if self._running:
            self._lease_more()  # Now that their size is known.
            self._admit()
            self._step()
        elif self._waiting or self._behind():
            self._report("swapping", "waiting for weights")
            self._holder.wait(_LOOK_SECONDS)

    def _lease_more(self) -> None:
        if self._draining or self._behind():
            return
        if not self._running and not self._waiting:
            self._report("waiting", "for groups")
        self._intake.look(self._running.values())

    def _behind(self) -> bool:
        """Whether the weights held are too old to take groups for; a pinned evaluation is finished first."""
        newest, held = self._holder.newest(), self._holder.label
        if newest is None or held is None or newest.policy_version - held.policy_version <= self._max_staleness:
            return False
        return not self._intake.evaluating(held)

    def _change_weights(self) -> None:
        """Swaps when other weights are here, the next group wants them, and nothing runs that must not see them."""
        head = self._waiting[0] if self._waiting else None
        required = None if head is None else head.required
        try:
            due = self._holder.due(required)
        except EngineFailed:
            raise  # Nothing can be fetched any more, for no group.
        except TerselyError as error:
            self._draining = False
            self._without_weights(required, error)
            return
        pinned = any(work.required is not None for work in self._running.values())
        if head is None and pinned:
            due = False  # More groups for these weights may come; the newest can wait until one asks for them.
        self._draining = due and bool(self._running) and (pinned or not self._in_flight)
        if not due or self._draining:
            return
        self._report("swapping", f"from version {self._holder.policy_version}")
        try:
            self._holder.apply()
        except EngineFailed as error:
            if required is None:
                raise
            for work in [work for work in self._waiting if work.required == required]:
                self._waiting.remove(work)
                self._strike(work, error.kind, error.message)

    def _without_weights(self, required: WeightsLabel | None, error: TerselyError) -> None:
        """Sends groups back whose weights can't be had; from the fourth time on that is a strike."""
        for work in [work for work in self._waiting if work.required == required]:
            self._waiting.remove(work)
            group_id = work.lease.group_id
            self._unavailable[group_id] += isinstance(error, WeightsUnavailable)
            if self._unavailable[group_id] > _MOST_UNAVAILABLE:
                del self._unavailable[group_id]
                work.desk.strike(work.lease, error.kind, error.message)
            else:
                _log.warning("group_given_back", group_id=group_id, kind=error.kind, message=error.message)
                work.desk.give_back(work.lease)
        if not self._running:
            self._stopping.wait(self._pause)

    def _admit(self) -> None:
        while self._waiting and not self._draining and self._fits(self._waiting[0]):
            work = self._waiting.popleft()
            group_id = work.group.group_id
            try:
                self._engine.admit(work.group)
            except Exception as error:  # noqa: BLE001 - any failure of an engine is the group's, and logged whole
                _log.exception("group_not_admitted", group_id=group_id, running=list(self._running))
                self._failed([work], error, beside=len(self._running))
                return
            self._running[group_id] = work

    def _fits(self, work: Work) -> bool:
        required, held = work.required, self._holder.label
        if required is not None and required != held:
            return False
        if self._behind() and required is None:
            return False
        if self._running:
            if work.alone or work.group.group_id in self._running or any(w.alone for w in self._running.values()):
                return False
            if any(w.required is None for w in self._running.values()) != (required is None):
                return False  # One could go on under new weights, the other must not.
        if self._engine.has_room(work.group):
            return True
        self._intake.refused()
        return False

    def _step(self) -> None:
        self._report("generating", f"{len(self._running)} groups with {self._holder.label}")
        try:
            finished = self._engine.step()
        except Exception as error:  # noqa: BLE001 - any failure of an engine is its groups', and logged whole
            _log.exception("generation_failed", groups=list(self._running))
            failed = list(self._running.values())
            self._running.clear()
            for work in failed:
                self._engine.cancel(work.group.group_id)
            self._failed(failed, error, beside=len(failed) - 1)
            return
        if finished:
            self._hand_on([(self._running.pop(done.prompt.group_id), done) for done in finished])

    def _failed(self, works: list[Work], error: Exception, *, beside: int) -> None:
        """A group that failed alone is struck; of those that failed together each is tried again alone."""
        if beside:
            for work in reversed(works):
                work.alone = True
                self._waiting.appendleft(work)
            return
        kind = error.kind if isinstance(error, TerselyError) else EngineFailed.kind
        for work in works:
            self._strike(work, kind, f"{type(error).__name__}: {error}")

    def _strike(self, work: Work, kind: str, message: str) -> None:
        """Strikes a group; one after the other must not go to quarantine because of a worker that is broken."""
        work.desk.strike(work.lease, kind, message)
        self._struck.add(work.lease.group_id)
        if len(self._struck) >= _MOST_STRUCK:
            raise EngineFailed(
                f"{len(self._struck)} different groups failed here, one after the other; the last: {message}",
                "See the worker's log; restart it, perhaps with another --engine or a smaller batch.",
            )

    def _drop(self, work: Work) -> None:
        if self._running.get(work.group.group_id) is work:
            del self._running[work.group.group_id]
            self._engine.cancel(work.group.group_id)
        else:
            self._waiting.remove(work)
        work.desk.drop_lost(work.lease)

    def _hand_on(self, finished: list[tuple[Work, GeneratedGroup]]) -> None:
        lost: list[Lease] = []
        for desk in self._intake.desks:
            messages = [(work.lease, self._message(done)) for work, done in finished if work.desk is desk]
            if messages:
                lost += desk.hand_on(messages)
        self._struck.clear()
        for work, done in finished:
            self._intake.ended(work)
            self._rate.add(done.sampled_tokens)
            if work.lease in lost:
                continue
            self._unavailable.pop(work.lease.group_id, None)
            self.groups_finished += 1
            _log.info(
                "group_generated",
                group_id=work.lease.group_id,
                tokens=done.sampled_tokens,
                seconds=round(done.seconds, 3),
                weights=str(self._holder.label),
            )
        self._report("generating", f"{self._intake.held} groups left")

    def _message(self, done: GeneratedGroup) -> bytes:
        return completion_group(done, self._node_id, self._engine_name, self._decode).SerializeToString()

    def _report(self, state: str, detail: str) -> None:
        self._report_to(
            state=state,
            detail=detail,
            policy_version=self._holder.policy_version,
            tokens_per_second=self._rate.per_second(),
            groups_finished=self.groups_finished,
            leases=self._intake.held,
            last_error=self._intake.last_error or self._holder.last_error,
            swap_pause_seconds=self._holder.swap_pause_seconds,
        )
