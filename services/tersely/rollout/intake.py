"""Which groups a worker takes: training groups as room frees, held-out prompts when there are none of those.

An evaluation must not hold training up: its prompts are leased only while no training group is to be had, and those not
begun are given back when one comes. It gets its turn all the same: the trainer issues nothing more once too many
evaluations are under way.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection

from google.protobuf.message import DecodeError

from tersely.errors import EngineFailed
from tersely.rollout.engines.base import Engine, is_bit_exact
from tersely.rollout.leases import LeaseDesk
from tersely.rollout.work import Work
from tersely.types import WeightsLabel
from tersely.v1 import group_pb2

BLOCK_SECONDS = 0.5
"""How long an idle worker waits for a group before it looks at weights and trainer again."""

_EMPTY_LOOK_SECONDS = 0.25
"""How soon a worker that has something to do looks again for groups where there were none: a look takes the time of a
step."""

_AWAY_LOOK_SECONDS = 5.0
"""How soon it looks again when the server did not answer."""


class Intake:
    """Leases groups for one worker and keeps those that wait for admission.

    Args:
        training: Leases of training groups, and of whatever else is in their stream.
        evaluation: Leases of held-out prompts; None: they are in no stream of their own.
        engine: Says how many rows run.
    """

    def __init__(self, training: LeaseDesk, evaluation: LeaseDesk | None, engine: Engine) -> None:
        self._training = training
        self._evaluation = evaluation
        self._engine = engine
        self._like: dict[LeaseDesk, group_pb2.PromptGroup] = {}
        self._last: Work | None = None
        self._most_rows: int | None = None
        self._next_look: dict[LeaseDesk, float] = {}
        self.waiting: deque[Work] = deque()

    @property
    def desks(self) -> tuple[LeaseDesk, ...]:
        """Where leases come from."""
        return (self._training,) if self._evaluation is None else (self._training, self._evaluation)

    @property
    def held(self) -> int:
        """Leases held now."""
        return sum(desk.held for desk in self.desks)

    @property
    def last_error(self) -> str:
        """What went wrong with a group or with the server; empty: nothing."""
        return next((desk.last_error for desk in self.desks if desk.last_error), "")

    def evaluating(self, held: WeightsLabel) -> bool:
        """Whether the groups taken last are held-out prompts for the weights held, which are then finished first."""
        return self._last is not None and self._last.evaluates and self._last.required == held

    def look(self, running: Collection[Work]) -> None:
        """Takes what can be admitted soon; waits for the first one when there is nothing else to do.

        Args:
            running: What the engine works on.
        """
        if any(work.desk is self._training for work in self.waiting):
            return
        busy = bool(running or self.waiting)
        if self._take(self._training, self._room(running), busy):
            self._let_training_go_first()
            return
        if self._may_evaluate(running) and self._take(self._evaluation, self._room_to_evaluate(), busy):
            return
        if not busy:
            self._take(self._training, self._room(running), busy, BLOCK_SECONDS)

    def refused(self) -> None:
        """The engine had no room for a group: no more are taken to lie about."""
        self._most_rows = self._engine.rows_running

    def ended(self, work: Work) -> None:
        """A group ended: others may fit where that one did not."""
        if self._most_rows is not None:
            self._most_rows += work.group.group_size

    def give_all_back(self) -> None:
        """Gives back whatever is still held."""
        for desk in self.desks:
            desk.give_all_back()

    def _take(self, desk: LeaseDesk | None, count: int, busy: bool, block_seconds: float = 0.0) -> bool:
        """Whether something was taken; where there is other work to do, looks are rare and no server is waited for."""
        if desk is None or not count or (busy and time.monotonic() < self._next_look.get(desk, 0.0)):
            return False
        leases = desk.take(count, block_seconds, patient=not busy)
        if leases is None:
            self._next_look = dict.fromkeys(self.desks, time.monotonic() + _AWAY_LOOK_SECONDS)
            return False
        if not leases:
            self._next_look[desk] = time.monotonic() + _EMPTY_LOOK_SECONDS
        before = len(self.waiting)
        for lease in leases:
            try:
                work = Work(lease, group_pb2.PromptGroup.FromString(lease.payload), desk)
            except DecodeError as error:
                desk.strike(lease, EngineFailed.kind, f"The entry is no PromptGroup: {error}")
                continue
            self.waiting.append(work)
            self._last, self._like[desk] = work, work.group
        return len(self.waiting) > before

    def _let_training_go_first(self) -> None:
        for work in [work for work in self.waiting if work.desk is not self._training]:
            self.waiting.remove(work)
            work.desk.give_back(work.lease)

    def _may_evaluate(self, running: Collection[Work]) -> bool:
        return not self.waiting and all(work.desk is self._evaluation and not work.alone for work in running)

    def _room(self, running: Collection[Work]) -> int:
        """Training groups like the last one that could be admitted now; one at least where only held-out ones run."""
        mine = [work for work in running if work.desk is self._training]
        like = self._like.get(self._training)
        if like is None:
            return 1
        if is_bit_exact(like) or any(work.alone for work in mine):
            return 0 if mine else 1
        return max(self._free_rows() // max(like.group_size, 1), 0 if mine else 1)

    def _room_to_evaluate(self) -> int:
        like = None if self._evaluation is None else self._like.get(self._evaluation)
        if like is None:
            return 1
        return max(self._free_rows() // max(like.group_size, 1), 0 if self._engine.running else 1)

    def _free_rows(self) -> int:
        most = self._engine.capabilities().batch_sequences
        if self._most_rows is not None:
            most = min(most, self._most_rows)
        return most - self._engine.rows_running
