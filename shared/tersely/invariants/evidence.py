"""What a run has written down, read once and kept small: events with their lines, the log without its texts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from tersely.errors import LogCorrupt
from tersely.supervise.run_dir import RunDir, read_json
from tersely.telemetry.framed import read_framed
from tersely.types import WeightsLabel
from tersely.v1 import group_pb2, log_pb2

EVENTS, LOG, SAMPLES = "events.jsonl", "log/run.wal", "samples.jsonl"
OUTCOMES = ("group_trained", "group_stale", "group_no_signal", "group_quarantined")
_ENDS = {"run_finished": "finished", "run_drained": "drained"}
_STARTS = ("run_started", "run_resumed")
_DROPPED = {
    log_pb2.GROUP_OUTCOME_STALE: "stale",
    log_pb2.GROUP_OUTCOME_NO_SIGNAL: "no_signal",
    log_pb2.GROUP_OUTCOME_QUARANTINED: "quarantined",
}


@dataclass(frozen=True, slots=True)
class Event:
    """One line of events.jsonl."""

    line: int
    kind: str
    facts: Mapping[str, Any]

    @property
    def where(self) -> str:
        """Its place."""
        return f"{EVENTS}:{self.line}"

    def __getitem__(self, name: str) -> Any:
        return self.facts.get(name)


@dataclass(frozen=True, slots=True)
class LoggedGroup:
    """A group in a logged batch.

    Attributes:
        group_id: Its id.
        labels: All labels of weights that sampled in it.
    """

    group_id: str
    labels: frozenset[WeightsLabel]


@dataclass(frozen=True, slots=True)
class Record:
    """One record of the log.

    Attributes:
        number: Its place, from 1.
        kind: Name of the message.
        facts: Its fields.
        label: Of a version made, of a roll-back, or the initial one.
        groups: Of a batch.
    """

    number: int
    kind: str
    facts: Mapping[str, Any]
    label: WeightsLabel | None = None
    groups: tuple[LoggedGroup, ...] = ()

    @property
    def where(self) -> str:
        """Its place."""
        return f"{LOG}:{self.number}"

    def __getitem__(self, name: str) -> Any:
        return self.facts.get(name)


@dataclass(slots=True)
class Evidence:
    """All that a run directory tells.

    Attributes:
        run_dir: It.
        events: In the order written.
        unreadable: Lines of events.jsonl that are no event: torn by a crash, or damaged.
        records: Of the log; None: there is no log.
        log_fault: Why the rest of the log can't be read; empty: it can.
        state: `finished`, `drained`, or `unfinished`: a trainer is at work, or died.
    """

    run_dir: RunDir
    events: list[Event] = field(default_factory=list)
    unreadable: list[int] = field(default_factory=list)
    records: list[Record] | None = None
    log_fault: str = ""
    state: str = "unfinished"

    @classmethod
    def read(cls, run_dir: RunDir) -> Evidence:
        """Reads a run; one that goes on may be read too.

        Args:
            run_dir: It.

        Raises:
            RunDirMissing.
        """
        run_dir.check_exists()
        found = cls(run_dir)
        # Events first: each was in the log before, so that the log read afterwards knows of all of them.
        found._read_events()
        found._read_log()
        return found

    def of(self, *kinds: str) -> Iterator[Event]:
        """Events of these kinds."""
        return (event for event in self.events if event.kind in kinds)

    def logged(self, *kinds: str) -> Iterator[Record]:
        """Records of these kinds."""
        return (record for record in self.records or () if record.kind in kinds)

    @property
    def recipe(self) -> Mapping[str, Any]:
        """The newest recipe; empty where it is not recorded."""
        recipes = [event["recipe"] for event in self.of(*_STARTS) if isinstance(event["recipe"], dict)]
        return recipes[-1] if recipes else read_json(self.run_dir.recipe) or {}

    def setting(self, section: str, key: str) -> Any:
        """A setting of the newest recipe; None where it is not recorded."""
        part = self.recipe.get(section)
        return part.get(key) if isinstance(part, dict) else None

    def samples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Rows of samples.jsonl with their lines; torn ones are left out."""
        return ((number, row) for number, row in _json_lines(self.run_dir.samples) if row is not None)

    def _read_events(self) -> None:
        for number, item in _json_lines(self.run_dir.events):
            if item is None or not isinstance(item.get("kind"), str) or "time" not in item:
                self.unreadable.append(number)
                continue
            event = Event(number, item["kind"], item)
            self.events.append(event)
            if event.kind in _ENDS or event.kind in _STARTS:
                self.state = _ENDS.get(event.kind, "unfinished")

    def _read_log(self) -> None:
        path = self.run_dir.path / LOG
        if not path.exists():
            return
        self.records = []
        try:
            for number, payload in enumerate(read_framed(path), 1):
                record = _record(number, log_pb2.LogRecord.FromString(payload))
                if record is not None:
                    self.records.append(record)
        except LogCorrupt as error:
            self.log_fault = error.message
        except DecodeError:
            self.log_fault = f"Record {number} of the log is whole, but no record of a run."


def _record(number: int, record: log_pb2.LogRecord) -> Record | None:
    kind = record.WhichOneof("record")
    if kind == "trainer_started":
        started = record.trainer_started
        facts: dict[str, Any] = {"run_id": started.run_id, "incarnation": started.incarnation}
        if started.HasField("checkpoint_step"):
            facts["checkpoint_step"] = started.checkpoint_step
        return Record(number, kind, facts, WeightsLabel.from_proto(started.initial_weights))
    if kind == "group_issued":
        issued = record.group_issued
        facts = {name: getattr(issued, name) for name in ("group_id", "issue_number", "prompt_id", "replay_of")}
        return Record(number, kind, facts)
    if kind == "group_dropped":
        dropped = record.group_dropped
        outcome = _DROPPED.get(dropped.outcome, "unknown")
        return Record(number, kind, {"group_id": dropped.group_id, "outcome": outcome})
    if kind == "batch_formed":
        batch = record.batch_formed
        return Record(number, kind, {"step": batch.step}, groups=tuple(_group(group) for group in batch.groups))
    if kind == "version_committed":
        made = record.version_committed
        return Record(number, kind, {"step": made.step}, WeightsLabel.from_proto(made.weights))
    if kind == "rolled_back":
        back = record.rolled_back
        return Record(number, kind, {"step": back.step, "to_step": back.to_step}, WeightsLabel.from_proto(back.weights))
    return None


def _group(scored: group_pb2.ScoredGroup) -> LoggedGroup:
    spans = (span for completion in scored.group.completions for span in completion.version_spans)
    return LoggedGroup(scored.group.prompt.group_id, frozenset(WeightsLabel.from_proto(span.weights) for span in spans))


def _json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """(Line number, object); None for a line that holds none."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                item = json.loads(line)
            except (ValueError, RecursionError):
                item = None
            yield number, item if isinstance(item, dict) else None
