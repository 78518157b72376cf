"""The way back after a stop: the learner brought to where its run stood, by a checkpoint and a replay of the log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import structlog

from tersely.telemetry.events import EventLog
from tersely.testing.faultpoints import reach
from tersely.trainer.checkpoint import Checkpoint
from tersely.trainer.history import History, Rollback, fold, read_log
from tersely.trainer.learner import Learner
from tersely.trainer.recorder import Recorder
from tersely.trainer.retrace import Start, choose_start, retrace
from tersely.trainer.wal import WriteAheadLog
from tersely.types import PolicyVersion, WeightsLabel
from tersely.v1 import log_pb2
from tersely.weights.store import SnapshotStore

__all__ = [
    "History",
    "Position",
    "Rollback",
    "Start",
    "choose_start",
    "commit_rollback",
    "commit_version",
    "fold",
    "read_log",
    "restore",
]

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Position:
    """Where the learner stands: steps trained, the label of its weights, and the step of the newest checkpoint."""

    step: int
    label: WeightsLabel
    checkpointed_step: int = 0


def restore(
    history: History,
    start: Start,
    checkpoints: Sequence[Checkpoint],
    learner: Learner,
    store: SnapshotStore,
    wal: WriteAheadLog,
    events: EventLog,
    recorder: Recorder,
) -> Position:
    """Brings a fresh learner to the end of the log and returns where that is.

    A batch that was logged but whose version was not committed is trained now, once. When a replayed version's hash is
    not the logged one (another device, thread count or library), training goes on under a number never used before.

    Args:
        history: The log; brought up to date with what is committed here, and its batches let go of.
        start: From `choose_start`.
        checkpoints: Those it knew.
        learner: In its initial state.
        store: Makes labels; nothing is announced.
        wal: Takes new labels.
        events: Takes alarms.
        recorder: Told of trained batches.

    Raises:
        CheckpointInvalid, LogCorrupt.
    """
    step, label = start.step, start.label
    for done in retrace(history, learner, start, checkpoints):
        if done.is_start:
            continue
        step, sampled_at = done.step, label.policy_version
        logged = history.versions.get(step) if done.rollback is None else done.rollback.label
        label = _label_reached(step, logged, learner, store, history, events)
        if done.rollback is not None:
            if label != logged:
                commit_rollback(wal, history, Rollback(step, done.rollback.to_step, label, done.rollback.reason))
            continue
        if label != logged:
            history.committed(step, label)
            commit_version(wal, step, label)
            events.write("version_published", step=step, **asdict(label))
        assert done.health is not None
        log.info("replayed a logged batch", step=step, of=history.last_step)
        recorder.trained(
            step,
            done.groups,
            done.health,
            sampled_at=sampled_at,
            made=label.policy_version,
            seconds={"learn": done.seconds},
            dropped=history.dropped.get(step, 0),
            replayed=True,
        )
    history.batches.clear()  # much memory, which nobody needs any more
    return Position(step, label, max((checkpoint.step for checkpoint in checkpoints), default=0))


def _label_reached(
    step: int,
    logged: WeightsLabel | None,
    learner: Learner,
    store: SnapshotStore,
    history: History,
    events: EventLog,
) -> WeightsLabel:
    number = PolicyVersion(history.highest_version + 1)
    reached = store.prepare(number if logged is None else logged.policy_version, learner.published()).label
    if logged is None or reached == logged:
        return reached
    events.write("alarm", name="replay_differs", step=step, logged=str(logged), reached=str(reached))
    log.warning("a replayed version differs from the logged one; going on under a new number", step=step, number=number)
    return WeightsLabel(number, reached.weights_sha256)


def commit_version(wal: WriteAheadLog, step: int, label: WeightsLabel) -> None:
    """Puts a version on disk before anybody is told of it."""
    reach("before_commit")
    committed = log_pb2.VersionCommitted(step=step, weights=label.to_proto())
    wal.append(log_pb2.LogRecord(version_committed=committed), sync=True)
    reach("inside_publish")


def commit_rollback(wal: WriteAheadLog, history: History, rollback: Rollback) -> None:
    """Puts a roll-back on disk, and into the history, before anybody is told of the weights."""
    history.rolled_back(rollback)
    rolled = log_pb2.RolledBack(
        step=rollback.step, to_step=rollback.to_step, weights=rollback.label.to_proto(), reason=rollback.reason
    )
    wal.append(log_pb2.LogRecord(rolled_back=rolled), sync=True)
