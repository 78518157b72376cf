"""From the learner to a snapshot that workers can fetch."""

from __future__ import annotations

from tersely.trainer.learner import Learner
from tersely.weights.snapshot import Snapshot
from tersely.weights.store import SnapshotStore


def prepare_version(store: SnapshotStore, version: int, learner: Learner) -> Snapshot:
    """Makes a snapshot of what the learner holds, with all that workers want to know; nobody is told of it yet.

    Args:
        store: Makes it.
        version: Policy version, >= 0.
        learner: Holds the weights.
    """
    return store.prepare(version, learner.published(), probe=learner.probe(), adapter=learner.low_rank())
