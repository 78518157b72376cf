"""Where a run stands: read from its log, the learner brought there by its newest checkpoint and a replay of the log."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from tersely.errors import LogCorrupt
from tersely.telemetry.events import EventLog
from tersely.trainer.checkpoint import list_checkpoints
from tersely.trainer.learner import Learner
from tersely.trainer.ledger import Issue, Ledger, Outcome
from tersely.trainer.recorder import Recorder
from tersely.trainer.run_directory import RunDirectory
from tersely.trainer.samples import training_group
from tersely.trainer.wal import WriteAheadLog
from tersely.types import GroupId, IssueNumber, PolicyVersion, RunId, WeightsLabel
from tersely.v1 import group_pb2, log_pb2
from tersely.weights.store import SnapshotStore

log = structlog.get_logger(__name__)

_OUTCOMES = {
    log_pb2.GROUP_OUTCOME_STALE: Outcome.STALE,
    log_pb2.GROUP_OUTCOME_NO_SIGNAL: Outcome.NO_SIGNAL,
    log_pb2.GROUP_OUTCOME_QUARANTINED: Outcome.QUARANTINED,
}


@dataclass(slots=True)
class History:
    """What a log says.

    Attributes:
        run_id: The run; None for an empty log.
        initial: Label of version 0.
        recipe_sha256: Hash of the settings it was begun with.
        ledger: The books.
        batches: Groups of each step that has a complete batch.
        versions: Label each step made, where that was committed.
    """

    run_id: RunId | None = None
    initial: WeightsLabel | None = None
    recipe_sha256: str = ""
    ledger: Ledger = field(default_factory=Ledger)
    batches: dict[int, list[group_pb2.ScoredGroup]] = field(default_factory=dict)
    versions: dict[int, WeightsLabel] = field(default_factory=dict)

    @property
    def highest_version(self) -> PolicyVersion:
        """The highest number ever given out."""
        return PolicyVersion(max((label.policy_version for label in self.versions.values()), default=0))


def read_log(path: Path) -> History:
    """Folds a log into a History; a torn last record is cut off.

    Raises:
        LogCorrupt.
    """
    with WriteAheadLog(path) as wal:
        return fold(wal)


def fold(wal: WriteAheadLog) -> History:
    """The same for an open log."""
    history = History()
    for record in wal.records():
        kind = record.WhichOneof("record")
        if kind == "trainer_started" and history.run_id is None:
            started = record.trainer_started
            history.run_id = RunId(started.run_id)
            history.initial = WeightsLabel.from_proto(started.initial_weights)
            history.recipe_sha256 = started.recipe_sha256
        elif kind == "group_issued":
            issued = record.group_issued
            history.ledger.record_issue(
                Issue(GroupId(issued.group_id), IssueNumber(issued.issue_number), issued.prompt_id)
            )
        elif kind == "group_dropped":
            dropped = record.group_dropped
            history.ledger.record_outcome(GroupId(dropped.group_id), _OUTCOMES[dropped.outcome])
        elif kind == "batch_formed":
            history.batches[record.batch_formed.step] = list(record.batch_formed.groups)
            for group in record.batch_formed.groups:
                history.ledger.record_outcome(GroupId(group.group.prompt.group_id), Outcome.TRAINED)
        elif kind == "version_committed":
            committed = record.version_committed
            history.versions[committed.step] = WeightsLabel.from_proto(committed.weights)
    return history


@dataclass(frozen=True, slots=True)
class Position:
    """Where the learner stands: steps trained, the label of its weights, and the step of the newest checkpoint."""

    step: int
    label: WeightsLabel
    checkpointed_step: int = 0


def restore(
    history: History,
    directory: RunDirectory,
    learner: Learner,
    store: SnapshotStore,
    wal: WriteAheadLog,
    events: EventLog,
    recorder: Recorder,
) -> Position:
    """Brings the learner to the end of the log and returns where that is.

    A batch that was logged but whose version was not committed is trained now, once. When a replayed version's hash is
    not the logged one (another device, thread count or library), training goes on under a number never used before.

    Raises:
        CheckpointInvalid, LogCorrupt.
    """
    assert history.initial is not None
    step, label = 0, history.initial
    checkpoints = list_checkpoints(directory.checkpoints)
    if checkpoints:
        newest = checkpoints[-1]
        learner.load_state(newest.tensors(), newest.learner)
        step = newest.step
        label = WeightsLabel(PolicyVersion(newest.policy_version), newest.weights_sha256)
    last = max(history.batches, default=0)
    for replayed in range(step + 1, last + 1):
        if replayed not in history.batches:
            raise LogCorrupt(
                f"The write-ahead log of {directory.path} has no batch for step {replayed}, but one for step {last}.",
                "Restore the file from a backup.",
            )
        groups = history.batches[replayed]
        began, sampled_at = time.monotonic(), label.policy_version
        log.info("replaying a logged batch", step=replayed, of=last)
        health = learner.train([training_group(group) for group in groups], replayed)
        label = _label_after(replayed, learner, store, history, wal, events)
        recorder.trained(
            replayed,
            groups,
            health,
            sampled_at=sampled_at,
            made=label,
            seconds={"learn": time.monotonic() - began},
            dropped=0,
            replayed=True,
        )
        history.versions[replayed] = label
        step = replayed
    return Position(step, label, checkpoints[-1].step if checkpoints else 0)


def _label_after(
    step: int, learner: Learner, store: SnapshotStore, history: History, wal: WriteAheadLog, events: EventLog
) -> WeightsLabel:
    number = PolicyVersion(history.highest_version + 1)
    logged = history.versions.get(step)
    reached = store.prepare(logged.policy_version if logged else number, learner.published()).label
    if logged is not None and reached.weights_sha256 != logged.weights_sha256:
        events.write("alarm", name="replay_differs", step=step, logged=str(logged), reached=str(reached))
        log.warning(
            "a replayed version differs from the logged one; going on under a new number", step=step, number=number
        )
        reached = WeightsLabel(number, reached.weights_sha256)
    elif logged is not None:
        return logged
    commit_version(wal, step, reached)
    return reached


def commit_version(wal: WriteAheadLog, step: int, label: WeightsLabel) -> None:
    """Puts a version on disk before anybody is told of it."""
    committed = log_pb2.VersionCommitted(step=step, weights=label.to_proto())
    wal.append(log_pb2.LogRecord(version_committed=committed), sync=True)
