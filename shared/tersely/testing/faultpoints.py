"""Named places in the trainer where a test can have it killed, as by the power switch.

They do nothing unless the environment variable ``TERSELY_FAULT`` is ``point:count`` when the process starts: then the
process sends itself SIGKILL the `count`-th time (from 1) that it comes to that point. No handler runs, no buffer is
flushed. In the order in which a step of a synchronous run comes to them:

====================  ==================================================================================
before_log_write      a record that must be on disk is about to be written to the log: a batch, a drop, a version
inside_log_write      half of such a record is in the file
after_log_write       it is on disk
after_ack             the batch's groups are acknowledged in Redis
inside_step           after the last backward pass, before the optimizer
after_step            the optimizer has stepped; nobody knows the new weights yet
before_commit         the version has its number and hash
inside_publish        the version is in the log, but not announced
after_publish         it is announced to the workers
after_record          events, samples and status tell of the step
inside_checkpoint     the tensors are written under a temporary name
after_checkpoint      it has its final name; older ones are still there
after_prune           older ones are gone
====================  ==================================================================================
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import NoReturn

FAULT_ENV = "TERSELY_FAULT"
POINTS = (
    "before_log_write",
    "inside_log_write",
    "after_log_write",
    "after_ack",
    "inside_step",
    "after_step",
    "before_commit",
    "inside_publish",
    "after_publish",
    "after_record",
    "inside_checkpoint",
    "after_checkpoint",
    "after_prune",
)


class FaultPlan:
    """Where this process is to die, if anywhere.

    Args:
        spec: ``point:count``, or empty.

    Raises:
        ValueError: It is neither.
    """

    def __init__(self, spec: str) -> None:
        self._point, self._left = "", 0
        if not spec:
            return
        point, _, count = spec.partition(":")
        if point not in POINTS or not count.isdecimal() or int(count) < 1:
            raise ValueError(f"{FAULT_ENV}={spec} is not point:count; points are {', '.join(POINTS)}")
        self._point, self._left = point, int(count)

    def due(self, point: str) -> bool:
        """Counts a visit of a point; True when the process is to die there now."""
        if point != self._point:
            return False
        self._left -= 1
        return self._left == 0


_plan = FaultPlan(os.environ.get(FAULT_ENV, ""))


def reach(point: str, before: Callable[[], object] | None = None) -> None:
    """Marks a place; the process dies here when the environment asks for it.

    Args:
        point: One of `POINTS`.
        before: Done first when, and only when, it is going to die here.
    """
    if _plan.due(point):
        if before is not None:
            before()
        _die()


def _die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("SIGKILL was survived")
