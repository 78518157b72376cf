"""What a run's log says, folded into one object."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tersely.errors import LogCorrupt
from tersely.trainer.ledger import Issue, Ledger, Outcome
from tersely.trainer.wal import WriteAheadLog
from tersely.types import GroupId, IssueNumber, PolicyVersion, RunId, WeightsLabel
from tersely.v1 import group_pb2, log_pb2

_OUTCOMES = {
    log_pb2.GROUP_OUTCOME_STALE: Outcome.STALE,
    log_pb2.GROUP_OUTCOME_NO_SIGNAL: Outcome.NO_SIGNAL,
    log_pb2.GROUP_OUTCOME_QUARANTINED: Outcome.QUARANTINED,
}


@dataclass(frozen=True, slots=True)
class Rollback:
    """The learner took over an earlier state.

    Attributes:
        step: Last step trained before it.
        to_step: Step whose state it took over, as training left it; 0 is the initial state.
        label: Label of the weights from then on: a new number, the hash of the earlier weights.
        reason: For people.
    """

    step: int
    to_step: int
    label: WeightsLabel
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Steps trained by one trainer: all after `after_step`, up to the next stretch.

    Attributes:
        after_step: Step whose state it began with.
        environment: Its device, threads and library versions.
    """

    after_step: int
    environment: Mapping[str, str]


@dataclass(slots=True)
class History:
    """What a log says.

    Attributes:
        run_id: The run; None for an empty log.
        initial: Label of version 0.
        recipe_sha256: Hash of the settings that the newest trainer went on with.
        ledger: The books.
        batches: Groups of each step that has a complete batch; `restore` lets go of them.
        last_step: The newest step that has one; 0 before the first.
        versions: Label each step made, where that was committed; the newest, where it was trained more than once.
        rollbacks: By the last step trained before them; the newest for each.
        stretches: Who trained which steps last, in order.
        highest_version: The highest number ever given out.
        dropped: Groups that fell out on the way to the batch of each step.
        dropped_since_batch: Groups that fell out after the newest batch.
    """

    run_id: RunId | None = None
    initial: WeightsLabel | None = None
    recipe_sha256: str = ""
    ledger: Ledger = field(default_factory=Ledger)
    batches: dict[int, list[group_pb2.ScoredGroup]] = field(default_factory=dict)
    last_step: int = 0
    versions: dict[int, WeightsLabel] = field(default_factory=dict)
    rollbacks: dict[int, Rollback] = field(default_factory=dict)
    stretches: list[Stretch] = field(default_factory=list)
    highest_version: PolicyVersion = field(default_factory=lambda: PolicyVersion(0))
    dropped: dict[int, int] = field(default_factory=dict)
    dropped_since_batch: int = 0

    @property
    def known_labels(self) -> list[WeightsLabel]:
        """Labels whose samples may be trained on: the initial one, and those of all steps but the rolled back ones."""
        by_step: dict[int, list[WeightsLabel]] = {0: [] if self.initial is None else [self.initial]}
        for step in sorted(self.versions.keys() | self.rollbacks.keys()):
            by_step[step] = [self.versions[step]] if step in self.versions else []
            if rollback := self.rollbacks.get(step):
                by_step = {earlier: labels for earlier, labels in by_step.items() if earlier <= rollback.to_step}
                by_step.setdefault(step, []).append(rollback.label)
        return [label for labels in by_step.values() for label in labels]

    def environment_of(self, step: int) -> Mapping[str, str]:
        """Where a step was trained last."""
        found: Mapping[str, str] = {}
        for stretch in self.stretches:
            if stretch.after_step < step:
                found = stretch.environment
        return found

    def began(self, started: log_pb2.TrainerStarted) -> None:
        """Takes over the record of a trainer that started."""
        if self.run_id is None:
            self.run_id = RunId(started.run_id)
            self.initial = WeightsLabel.from_proto(started.initial_weights)
        self.recipe_sha256 = started.recipe_sha256
        after = started.checkpoint_step if started.HasField("checkpoint_step") else self.last_step
        self.stretches = [stretch for stretch in self.stretches if stretch.after_step < after]
        self.stretches.append(Stretch(after, dict(started.environment)))

    def committed(self, step: int, label: WeightsLabel) -> None:
        """Takes over the label that a step made."""
        self.versions[step] = label
        self.highest_version = max(self.highest_version, label.policy_version)

    def rolled_back(self, rollback: Rollback) -> None:
        """Takes over a roll-back."""
        self.rollbacks[rollback.step] = rollback
        self.highest_version = max(self.highest_version, rollback.label.policy_version)


def read_log(path: Path) -> History:
    """Folds a log into a History; a torn last record is cut off.

    Raises:
        LogCorrupt.
    """
    with WriteAheadLog(path) as wal:
        return fold(wal.records())


def _record_issue(ledger: Ledger, issued: log_pb2.GroupIssued) -> None:
    try:
        ledger.record_issue(
            Issue(GroupId(issued.group_id), IssueNumber(issued.issue_number), issued.prompt_id, issued.replay_of)
        )
    except ValueError as error:
        raise LogCorrupt(
            f"The log does not hold together: {error}.", "Restore the file from a backup; a record is missing from it."
        ) from None


def _outcome(dropped: log_pb2.GroupDropped) -> Outcome:
    if dropped.outcome not in _OUTCOMES:
        raise LogCorrupt(
            f"The log says of group {dropped.group_id[:80]!r} that it was dropped, but not in a way known here.",
            "Use the version of tersely that wrote it, or restore the file from a backup.",
        )
    return _OUTCOMES[dropped.outcome]


def fold(records: Iterable[log_pb2.LogRecord]) -> History:
    """The same for records, oldest first.

    Raises:
        LogCorrupt: They do not hold together.
    """
    history = History()
    for record in records:
        kind = record.WhichOneof("record")
        if kind == "trainer_started":
            history.began(record.trainer_started)
        elif kind == "group_issued":
            _record_issue(history.ledger, record.group_issued)
        elif kind == "group_dropped":
            dropped = record.group_dropped
            if history.ledger.record_outcome(GroupId(dropped.group_id), _outcome(dropped)):
                history.dropped_since_batch += 1
        elif kind == "batch_formed":
            history.batches[record.batch_formed.step] = list(record.batch_formed.groups)
            history.last_step = max(history.last_step, record.batch_formed.step)
            history.dropped[record.batch_formed.step] = history.dropped_since_batch
            history.dropped_since_batch = 0
            for group in record.batch_formed.groups:
                history.ledger.record_outcome(GroupId(group.group.prompt.group_id), Outcome.TRAINED)
        elif kind == "version_committed":
            committed = record.version_committed
            history.committed(committed.step, WeightsLabel.from_proto(committed.weights))
        elif kind == "rolled_back":
            rolled = record.rolled_back
            label = WeightsLabel.from_proto(rolled.weights)
            history.rolled_back(Rollback(rolled.step, rolled.to_step, label, rolled.reason))
    return history
