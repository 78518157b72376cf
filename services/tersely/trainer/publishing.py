"""From the learner to a snapshot that workers can fetch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from typing import TYPE_CHECKING

from tersely.testing.faultpoints import reach
from tersely.trainer.learner import Learner
from tersely.trainer.resume import commit_version
from tersely.types import PolicyVersion, WeightsLabel
from tersely.weights.adapter import AdapterLayer
from tersely.weights.probe import Probe
from tersely.weights.snapshot import Snapshot
from tersely.weights.store import SnapshotStore

if TYPE_CHECKING:
    from torch import Tensor

    from tersely.trainer.history import History
    from tersely.trainer.parts import Parts, Standing

_Taken = tuple[Mapping[str, "Tensor"], Probe, Sequence[AdapterLayer] | None]


def prepare_version(store: SnapshotStore, version: int, learner: Learner) -> Snapshot:
    """Makes a snapshot of what the learner holds, with all that workers want to know; nobody is told of it yet.

    Args:
        store: Makes it.
        version: Policy version, >= 0.
        learner: Holds the weights.
    """
    return _prepare(store, version, _take(learner))


class Publisher:
    """Publishes what the learner holds after a step: its label is on disk before anybody hears of it.

    In an asynchronous run only the bf16 copy and the probe are made on the training thread. Payload, hashes, the log's
    record and the announcement are left to a thread of its own, beside which the next batch is collected and the next
    step trained. Whoever asks for the label of these weights waits for it, and so does the next publication.
    In a synchronous run nobody could go on without the label: there it is all done at once.

    Args:
        parts: What the loop works with.
        standing: Where the run stands; its label is settled by this.
        history: The run's log; versions are added as they are made.
    """

    def __init__(self, parts: Parts, standing: Standing, history: History) -> None:
        self._parts = parts
        self._standing = standing
        self._history = history
        self._thread = ThreadPoolExecutor(1, "publish")
        self._pending: tuple[int, Future[WeightsLabel]] | None = None
        standing.settle = self.settle

    def publish(self, step: int) -> None:
        """Makes the weights after a step the next version.

        Args:
            step: Just trained.

        Raises:
            TrainerSuperseded, DiskFull: Nothing was announced; in an asynchronous run also those of the version before.
        """
        parts, standing = self._parts, self._standing
        parts.directory.check_incarnation()
        version = standing.next_version()
        taken = _take(parts.learner)
        if parts.recipe.synchronous:
            self._settled(step, self._make(step, version, taken))
            standing.step = step
            # Groups come in during an evaluation too, and those are for the step after it.
            parts.collector.begin_step(standing.label, step + 1)
            return
        self._pending = step, self._thread.submit(self._make, step, version, taken)
        standing.version = version
        standing.step = step
        parts.collector.expect_version(version, step + 1)

    def settle(self) -> None:
        """Waits until what was begun is published; raises what went wrong."""
        if self._pending is not None:
            (step, future), self._pending = self._pending, None
            self._settled(step, future.result())

    def check(self) -> None:
        """The same, but only if it is over."""
        if self._pending is not None and self._pending[1].done():
            self.settle()

    def close(self) -> None:
        """Ends the thread, after what it is at."""
        self._thread.shutdown()

    def _settled(self, step: int, label: WeightsLabel) -> None:
        self._history.committed(step, label)
        self._standing.label = label

    def _make(self, step: int, version: PolicyVersion, taken: _Taken) -> WeightsLabel:
        parts = self._parts
        prepared = _prepare(parts.store, version, taken)
        commit_version(parts.wal, step, prepared.label)
        parts.collector.know_label(prepared.label)
        label = parts.store.announce(prepared)
        reach("after_publish")
        parts.events.write("version_published", step=step, **asdict(label))
        return label


def _take(learner: Learner) -> _Taken:
    """Copies that the next step does not change."""
    return learner.published(), learner.probe(), learner.low_rank()


def _prepare(store: SnapshotStore, version: int, taken: _Taken) -> Snapshot:
    tensors, probe, adapter = taken
    return store.prepare(version, tensors, probe=probe, adapter=adapter)
