"""What the training loop and its helpers share: the parts they work with, and where the run stands."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tersely.config import Recipe
from tersely.data.prompts import PreparedPrompt
from tersely.node.drain import DrainSignal
from tersely.telemetry.events import EventLog
from tersely.trainer.collector import Collector
from tersely.trainer.evaluation import EvaluationDesk
from tersely.trainer.issuing import Issuer
from tersely.trainer.learner import Learner
from tersely.trainer.recorder import Recorder
from tersely.trainer.ring import Ring
from tersely.trainer.run_directory import RunDirectory
from tersely.trainer.status import Status
from tersely.trainer.wal import WriteAheadLog
from tersely.trainer.watchdog.pace import Pace
from tersely.types import PolicyVersion, WeightsLabel
from tersely.weights.store import SnapshotStore


class Every:
    """Says once in a while that it is time."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._next = time.monotonic() + seconds

    def due(self) -> bool:
        """True when the time is over since the last True, or since the beginning."""
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + self._seconds
        return True


@dataclass(frozen=True, slots=True)
class Parts:
    """What the loop works with."""

    recipe: Recipe
    directory: RunDirectory
    wal: WriteAheadLog
    ring: Ring
    issuer: Issuer
    collector: Collector
    desk: EvaluationDesk
    learner: Learner
    store: SnapshotStore
    events: EventLog
    recorder: Recorder
    status: Status
    drain: DrainSignal
    eval_prompts: Sequence[PreparedPrompt]
    pace: Pace = field(default_factory=Pace)


@dataclass(slots=True)
class Standing:
    """Where the run stands. The loop and its helpers write it, in one thread.

    Attributes:
        step: Steps trained.
        settled_label: Label of the weights last published; to be asked for as `label`.
        version: Version of the weights that the learner holds; its label may be on its way to the log yet.
        highest_version: Highest version number ever given out.
        checkpointed_step: Step of the newest checkpoint.
        without_signal: Batches in a row that came to nothing.
        roll_backs: How often the run went back to an earlier state.
        rolled_back_at: Step after which it did so last; 0: never.
        evaluating: Steps whose weights are being evaluated; their checkpoints stay until that is over.
        stopped_by: Why the run is being stopped, for people; empty: nothing but its end or a drain stops it.
        settle: Waits until the weights that the learner holds are published.
    """

    step: int
    settled_label: WeightsLabel
    version: PolicyVersion
    highest_version: PolicyVersion
    checkpointed_step: int = 0
    without_signal: int = 0
    roll_backs: int = 0
    rolled_back_at: int = 0
    evaluating: set[int] = field(default_factory=set)
    stopped_by: str = ""
    settle: Callable[[], None] = lambda: None

    @property
    def label(self) -> WeightsLabel:
        """Label of the weights that the learner holds; waits until they are published."""
        self.settle()
        return self.settled_label

    @label.setter
    def label(self, label: WeightsLabel) -> None:
        self.settled_label, self.version = label, label.policy_version

    def next_version(self) -> PolicyVersion:
        """A number never used before; it counts as given out. Waits until the one before is published."""
        self.settle()
        self.highest_version = PolicyVersion(self.highest_version + 1)
        return self.highest_version
