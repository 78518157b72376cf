"""A run directory of three steps as a trainer leaves it, small and made by hand, and ways to doctor a copy."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from tersely.invariants.files import policy_sha256
from tersely.telemetry.framed import framed, read_framed
from tersely.types import PolicyVersion, WeightsLabel
from tersely.v1 import log_pb2

STEPS, PER_STEP, SIZE = 3, 2, 2
DROPPED = "g2"
"""Fell out for want of signal at the first step; g6 came in its place, and g1 is quarantined and tried again as g7."""

Events = list[dict[str, Any]]
Records = list[log_pb2.LogRecord]


def sha256_of(version: int) -> str:
    return hashlib.sha256(str(version).encode()).hexdigest()


def make_run(path: Path) -> Path:
    """Writes the run; groups are g0 ... in the order of their issue."""
    path.mkdir(parents=True)
    (path / "policy").mkdir()
    save_file({"head": np.arange(4, dtype=np.float32).reshape(2, 2)}, path / "policy" / "model.safetensors")
    final = policy_sha256(path / "policy" / "model.safetensors")
    assert final is not None
    hashes = [sha256_of(version) for version in range(STEPS)] + [final]
    labels = [WeightsLabel(PolicyVersion(version), sha256) for version, sha256 in enumerate(hashes)]
    recipe = {
        "run": {"groups_per_step": PER_STEP, "group_size": SIZE, "steps": STEPS},
        "queue": {"lease_seconds": 5.0},
    }
    events: Events = [{"kind": "run_started", "run_id": "r-made", "incarnation": 1, "recipe": recipe}]
    events.append({"kind": "leases_watched", "lease_seconds": 5.0})
    started = log_pb2.TrainerStarted(run_id="r-made", incarnation=1, initial_weights=labels[0].to_proto())
    records: Records = [log_pb2.LogRecord(trainer_started=started)]
    samples: Events = []

    def issue(number: int, replay_of: str = "") -> None:
        facts = {"group_id": f"g{number}", "issue_number": number, "prompt_id": f"p{number}"}
        records.append(log_pb2.LogRecord(group_issued=log_pb2.GroupIssued(**facts, replay_of=replay_of)))
        events.append({"kind": "group_issued", **facts, **({"replay_of": replay_of} if replay_of else {})})

    def drop(number: int, outcome: int, kind: str) -> None:
        dropped = log_pb2.GroupDropped(group_id=f"g{number}", outcome=outcome, reason="why")  # type: ignore[arg-type]
        records.append(log_pb2.LogRecord(group_dropped=dropped))
        events.append({"kind": kind, "group_id": f"g{number}", "issue_number": number, "reason": "why"})

    for number in range(6):
        issue(number)
    drop(2, log_pb2.GROUP_OUTCOME_NO_SIGNAL, "group_no_signal")
    issue(6)
    drop(1, log_pb2.GROUP_OUTCOME_QUARANTINED, "group_quarantined")
    issue(7, replay_of="g1")
    events.append(
        {"kind": "lease_expired", "stream": "prompts", "node_id": "rollout-a", "group_id": "g3", "alive": False}
    )
    events[-1] |= {"held_seconds": 5.2, "free_seconds": 0.2}
    events.append({**events[-1], "kind": "lease_recovered", "held_seconds": 6.1, "free_seconds": 1.1})
    for step, numbers in enumerate(((0, 3), (4, 5), (6, 7)), 1):
        batch = log_pb2.BatchFormed(step=step)
        for number in numbers:
            scored = batch.groups.add()
            scored.group.prompt.group_id = f"g{number}"
            for index in range(SIZE):
                completion = scored.group.completions.add(sample_index=index)
                completion.version_spans.add(weights=labels[step - 1].to_proto(), token_count=1)
                samples.append({"outcome": "trained", "group_id": f"g{number}", "sample_index": index, "step": step})
        records.append(log_pb2.LogRecord(batch_formed=batch))
        made = log_pb2.VersionCommitted(step=step, weights=labels[step].to_proto())
        records.append(log_pb2.LogRecord(version_committed=made))
        label = {"policy_version": step, "weights_sha256": hashes[step]}
        events.append({"kind": "version_published", "step": step, **label})
        for number in numbers:
            trained = {"group_id": f"g{number}", "issue_number": number, "step": step, "policy_version": step - 1}
            events.append({"kind": "group_trained", **trained})
        events.append({"kind": "step_finished", "step": step, "policy_version": step, "groups": PER_STEP})
    groups = {"issued": 8, "trained": 6, "stale": 0, "no_signal": 1, "quarantined": 1, "in_flight": 0}
    events.append({"kind": "run_finished", "run_id": "r-made", "groups": groups})
    report = {"groups": groups, "policy_version": STEPS, "final_weights_sha256": final}
    (path / "report.json").write_text(json.dumps(report))
    checkpoint = path / "checkpoints" / "step-000002"
    checkpoint.mkdir(parents=True)
    (checkpoint / "state.safetensors").write_bytes(b"masters")
    state = {"step": 2, "policy_version": 2, "weights_sha256": hashes[2]}
    state["tensors_sha256"] = hashlib.sha256(b"masters").hexdigest()
    (checkpoint / "state.json").write_text(json.dumps(state))
    write_lines(path / "events.jsonl", [{"time": 1.0 + place, **event} for place, event in enumerate(events)])
    write_lines(path / "samples.jsonl", samples)
    write_log(path, records)
    return path


def write_lines(path: Path, items: Events) -> None:
    path.write_text("".join(json.dumps(item) + "\n" for item in items))


def write_log(run: Path, records: Records) -> None:
    (run / "log").mkdir(exist_ok=True)
    (run / "log" / "run.wal").write_bytes(b"".join(framed(record.SerializeToString()) for record in records))


def change_events(run: Path, change: Callable[[Events], object]) -> None:
    """Doctors events.jsonl."""
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    change(events)
    write_lines(run / "events.jsonl", events)


def change_samples(run: Path, change: Callable[[Events], object]) -> None:
    """Doctors samples.jsonl."""
    rows = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    change(rows)
    write_lines(run / "samples.jsonl", rows)


def change_log(run: Path, change: Callable[[Records], object]) -> None:
    """Doctors the log, with right checksums."""
    records = [log_pb2.LogRecord.FromString(payload) for payload in read_framed(run / "log" / "run.wal")]
    change(records)
    write_log(run, records)


def change_json(run: Path, name: str, **facts: Any) -> None:
    """Doctors a JSON file."""
    path = run / name
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))


def place_of(items: Events, kind: str, **facts: Any) -> int:
    """Index of the first event like that."""
    wanted = {"kind": kind, **facts}
    return next(place for place, item in enumerate(items) if wanted.items() <= item.items())
