"""Every way in which a run's records can be untrue is named, with its place; a right run has none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tersely.errors import RunDirMissing
from tersely.invariants import Report, check_run
from tersely.telemetry.framed import read_framed
from tersely.testing.modules import load_module
from tersely.types import PolicyVersion, WeightsLabel
from tersely.v1 import log_pb2

made = load_module(Path(__file__).with_name("made_run.py"))
place_of = made.place_of
Doctor = Callable[[Path], object]


def events(change: Callable[[list[dict[str, Any]]], object]) -> Doctor:
    return lambda run: made.change_events(run, change)


def log(change: Callable[[list[log_pb2.LogRecord]], object]) -> Doctor:
    return lambda run: made.change_log(run, change)


def without(kind: str, **facts: object) -> Doctor:
    return events(lambda found: found.pop(place_of(found, kind, **facts)))


def twice(kind: str, **facts: object) -> Doctor:
    return events(lambda found: found.append(found[place_of(found, kind, **facts)]))


def changed(kind: str, new: dict[str, object], **facts: object) -> Doctor:
    return events(lambda found: found[place_of(found, kind, **facts)].update(new))


def unfinished(*doctors: Doctor) -> Doctor:
    """As a killed trainer leaves it."""
    return lambda run: [doctor(run) for doctor in (without("run_finished"), *doctors)]


def batch(records: list[log_pb2.LogRecord], step: int) -> int:
    return next(i for i, record in enumerate(records) if record.batch_formed.step == step)


def committed(records: list[log_pb2.LogRecord], step: int) -> int:
    return next(i for i, record in enumerate(records) if record.version_committed.step == step)


def flip_byte(run: Path) -> None:
    data = bytearray((run / "log" / "run.wal").read_bytes())
    data[40] ^= 1
    (run / "log" / "run.wal").write_bytes(data)


def other_policy(run: Path) -> None:
    path = run / "policy" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def relabel(records: list[log_pb2.LogRecord]) -> None:
    group = records[batch(records, 2)].batch_formed.groups[0].group
    group.completions[1].version_spans[0].weights.CopyFrom(WeightsLabel(PolicyVersion(1), "forged").to_proto())


def from_the_future(records: list[log_pb2.LogRecord]) -> None:
    group = records[batch(records, 2)].batch_formed.groups[0].group
    label = WeightsLabel(PolicyVersion(2), made.sha256_of(2))
    group.completions[0].version_spans[0].weights.CopyFrom(label.to_proto())


def same_group_again(records: list[log_pb2.LogRecord]) -> None:
    records[batch(records, 3)].batch_formed.groups[0].group.prompt.group_id = "g4"


OUTLIVED = {"kind": "lease_outlived", "time": 9.0, "stream": "prompts", "node_id": "n", "group_id": "g3"}
DOCTORED: dict[str, tuple[Doctor, str, str]] = {
    "a group without an end": (without("group_no_signal"), "conservation", "events.jsonl:5"),
    "a trained group without its event": (without("group_trained", group_id="g5"), "conservation", "log/run.wal:14"),
    "a gap in the issue numbers": (without("group_issued", group_id="g4"), "conservation", "events.jsonl:7"),
    "an issue twice": (twice("group_issued", group_id="g4"), "conservation", "events.jsonl:28"),
    "two ends of one group": (twice("group_no_signal"), "conservation", "events.jsonl:28"),
    "another end than the log has": (
        changed("group_no_signal", {"kind": "group_stale"}),
        "conservation",
        "events.jsonl:9",
    ),
    "books that do not add up": (
        changed("run_finished", {"groups": {"issued": 9, "trained": 6, "in_flight": 0}}),
        "conservation",
        "events.jsonl:27",
    ),
    "a report with other books": (
        lambda run: made.change_json(run, "report.json", groups={"issued": 8, "trained": 8}),
        "conservation",
        "report.json:1",
    ),
    "an issue that the log does not know": (
        log(lambda records: records.pop(6)),
        "conservation",
        "events.jsonl:8",
    ),
    "a second try of a group that never failed": (
        log(lambda records: setattr(records[10].group_issued, "replay_of", "g0")),
        "conservation",
        "log/run.wal:11",
    ),
    "two tries of one quarantined group": (
        log(lambda records: setattr(records[8].group_issued, "replay_of", "g1")),
        "conservation",
        "log/run.wal:11",
    ),
    "a group trained twice by the events": (twice("group_trained", group_id="g3"), "trained_once", "events.jsonl:28"),
    "a group in two batches": (log(same_group_again), "trained_once", "log/run.wal:16"),
    "a completion kept twice": (
        lambda run: made.change_samples(run, lambda rows: rows.append(rows[0])),
        "samples",
        "samples.jsonl:13",
    ),
    "a completion lost": (
        lambda run: made.change_samples(run, lambda rows: rows.pop(0)),
        "samples",
        "events.jsonl:16",
    ),
    "a trained row of a group that fell out": (
        lambda run: made.change_samples(run, lambda rows: rows[0].update(group_id=made.DROPPED)),
        "samples",
        "samples.jsonl:1",
    ),
    "a step left out": (without("step_finished", step=2), "steps_consecutive", "events.jsonl:25"),
    "a step finished twice": (twice("step_finished", step=3), "steps_consecutive", "events.jsonl:28"),
    "a run that ends too early": (
        events(lambda found: found[0]["recipe"]["run"].update(steps=4)),
        "steps_consecutive",
        "events.jsonl:27",
    ),
    "a trainer that comes back": (
        events(lambda found: found.insert(5, {**found[0], "kind": "run_resumed"})),
        "steps_consecutive",
        "events.jsonl:6",
    ),
    "a roll-back to a step that is not before": (
        events(lambda found: found.insert(20, {"time": 2.0, "kind": "rolled_back", "step": 1, "to_step": 1})),
        "steps_consecutive",
        "events.jsonl:21",
    ),
    "a batch left out of the log": (
        log(lambda records: records.pop(batch(records, 2))),
        "steps_consecutive",
        "log/run.wal:14",
    ),
    "a batch that made no version": (
        log(lambda records: records.pop(committed(records, 2))),
        "steps_consecutive",
        "log/run.wal:14",
    ),
    "a step short of a group": (without("group_trained", group_id="g0"), "step_groups", "events.jsonl:17"),
    "a batch short of a group": (
        log(lambda records: records[batch(records, 2)].batch_formed.groups.pop()),
        "step_groups",
        "log/run.wal:14",
    ),
    "a version number that goes back": (
        changed("version_published", {"policy_version": 1}, step=2),
        "versions_monotone",
        "events.jsonl:19",
    ),
    "a logged version number that goes back": (
        log(lambda records: setattr(records[committed(records, 3)].version_committed.weights, "policy_version", 2)),
        "versions_monotone",
        "log/run.wal:17",
    ),
    "a published hash that is not the logged one": (
        changed("version_published", {"weights_sha256": "forged"}, step=1),
        "labels_match_weights",
        "events.jsonl:15",
    ),
    "tokens under a hash that no version has": (log(relabel), "labels_match_weights", "log/run.wal:14"),
    "tokens of a version not yet made": (log(from_the_future), "labels_match_weights", "log/run.wal:14"),
    "tokens of a version that never was": (
        changed("group_trained", {"policy_version": 7}, group_id="g0"),
        "labels_match_weights",
        "events.jsonl:16",
    ),
    "a checkpoint under another label": (
        lambda run: made.change_json(run, "checkpoints/step-000002/state.json", weights_sha256=made.sha256_of(1)),
        "labels_match_weights",
        "checkpoints/step-000002/state.json:1",
    ),
    "a checkpoint with other bytes": (
        lambda run: (run / "checkpoints/step-000002/state.safetensors").write_bytes(b"mastars"),
        "labels_match_weights",
        "checkpoints/step-000002/state.safetensors:1",
    ),
    "an evaluation of weights that never were": (
        lambda run: (run / "evaluation-after.json").write_text('{"policy_version": 3, "weights_sha256": "x"}'),
        "labels_match_weights",
        "evaluation-after.json:1",
    ),
    "a policy with other weights": (other_policy, "labels_match_weights", "policy/model.safetensors:1"),
    "a lease left with a dead node": (
        changed("lease_recovered", {"held_seconds": 14.0, "free_seconds": 9.0}),
        "leases",
        "events.jsonl:14",
    ),
    "a lease never taken over": (
        events(lambda found: found.append({**OUTLIVED, "held_seconds": 14.0, "free_seconds": 8.5})),
        "leases",
        "events.jsonl:28",
    ),
    "a damaged log": (flip_byte, "files_intact", "log/run.wal:1"),
    "a torn group of a run that goes on": (
        unfinished(without("step_finished", step=1)),
        "steps_consecutive",
        "events.jsonl:21",
    ),
}


def breaches(report: Report, invariant: str) -> list[str]:
    found = next(finding for finding in report.findings if finding.name == invariant)
    return [breach.where for breach in found.breaches]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return made.make_run(tmp_path / "run")


def test_a_right_run_breaks_nothing_and_all_of_it_was_looked_at(run: Path) -> None:
    report = check_run(run)
    assert report.broken == []
    assert report.state == "finished"
    assert {finding.name for finding in report.findings if finding.state != "holds"} == set()
    checked = {finding.name: finding.checked for finding in report.findings}
    assert (checked["conservation"], checked["trained_once"], checked["samples"]) == (8, 6, 12)
    assert (checked["steps_consecutive"], checked["step_groups"], checked["versions_monotone"]) == (3, 3, 3)
    assert checked["leases"] == 1


@pytest.mark.parametrize("name", DOCTORED)
def test_a_breach_is_named_with_its_place(name: str, run: Path) -> None:
    doctor, invariant, where = DOCTORED[name]
    doctor(run)
    assert where in breaches(check_run(run), invariant)


def test_what_is_on_its_way_in_a_killed_run_is_no_breach(run: Path) -> None:
    """The log is ahead of the events, a step is half written down, and the last line is torn."""

    def cut(found: list[dict[str, Any]]) -> None:
        del found[place_of(found, "group_trained", group_id="g7") :]

    unfinished(events(cut))(run)
    (run / "report.json").unlink()
    with (run / "events.jsonl").open("a") as file:
        file.write('{"time": 1.0, "kind": "group_tr')
    report = check_run(run)
    assert report.broken == []
    assert report.state == "unfinished"
    assert "1 lines of events.jsonl" in " ".join(note for finding in report.findings for note in finding.notes)


def test_repaired_events_may_stand_late(run: Path) -> None:
    def late(found: list[dict[str, Any]]) -> None:
        found.insert(24, {**found.pop(place_of(found, "version_published", step=1)), "repaired": True})

    made.change_events(run, late)
    assert check_run(run).broken == []


def test_what_a_run_lacks_is_said_and_is_not_right(run: Path) -> None:
    (run / "samples.jsonl").unlink()
    made.change_events(run, lambda found: [found.pop(place_of(found, "leases_watched"))])
    states = {finding.name: finding.state for finding in check_run(run).findings}
    assert states["samples"] == states["leases"] == "not_recorded"
    assert states["conservation"] == "holds"


def test_events_alone_are_checked_where_there_is_no_log(run: Path) -> None:
    (run / "log" / "run.wal").unlink()
    assert check_run(run).broken == []
    twice("group_trained", group_id="g0")(run)
    assert "trained_once" in check_run(run).broken


def test_a_short_step_that_says_so_is_right(run: Path) -> None:
    def shorten(found: list[dict[str, Any]]) -> None:
        found[place_of(found, "step_finished", step=2)]["groups"] = 1
        found.pop(place_of(found, "group_trained", group_id="g5"))
        found.insert(10, {"time": 1.0, "kind": "alarm", "name": "batch_short", "step": 2, "groups": 1})

    made.change_events(run, shorten)
    made.change_log(run, lambda records: records[batch(records, 2)].batch_formed.groups.pop())
    assert breaches(check_run(run), "step_groups") == []


def test_reading_changes_nothing(run: Path) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    check_run(run)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert len(list(read_framed(run / "log" / "run.wal"))) == 17


def test_no_run_is_no_success(tmp_path: Path) -> None:
    with pytest.raises(RunDirMissing):
        check_run(tmp_path)
