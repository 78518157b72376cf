"""Versions of the weights: their numbers only grow, and whatever bears a label was made by the weights it names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tersely.invariants.evidence import Evidence
from tersely.invariants.files import file_sha256, policy_sha256
from tersely.invariants.finding import Finding
from tersely.supervise.run_dir import read_json

_MADE = ("version_published", "rolled_back")


def monotone(evidence: Evidence) -> Finding:
    """A version number is given out once, and each is higher than all before."""
    found = Finding("versions_monotone", "each version has a higher number than all before it", "versions")
    highest = 0
    for event in evidence.of(*_MADE):
        number = _number(event["policy_version"])
        found.checked += 1
        # One that a dead trainer had no time to write down stands where its successor found that out.
        if number <= highest and not event["repaired"]:
            found.breach(event.where, f"version {number} is published after version {highest}")
        highest = max(highest, number)
    made, last = 0, None
    for event in evidence.of("step_finished"):
        if isinstance(number := event["policy_version"], int):
            if last is not None and number <= last:
                found.breach(event.where, f"step {event['step']} made version {number}, the step before it {last}")
            last = number
    for record in evidence.logged("version_committed", "rolled_back"):
        assert record.label is not None
        if record.label.policy_version <= made:
            found.breach(record.where, f"version {record.label.policy_version} is logged after version {made}")
        made = max(made, record.label.policy_version)
    if found.checked == 0 and made == 0:
        return found.not_recorded("no version was published yet, or versions are not recorded by this run")
    return found


def labels(evidence: Evidence) -> Finding:
    """Tokens, checkpoints, evaluations and the exported policy bear labels of versions that were really made."""
    found = Finding(
        "labels_match_weights",
        "every label on tokens, checkpoints, evaluations and the policy is that of a version made, hash and number",
        "labels",
    )
    known = _published(evidence, found)
    if not known:
        return found.not_recorded("no version was published yet, or versions are not recorded by this run")
    _tokens(evidence, found, known)
    for where, facts in _labelled(evidence):
        found.checked += 1
        number, sha256 = _number(facts.get("policy_version")), facts.get("weights_sha256")
        if number not in known:
            found.breach(where, f"it is labelled with version {number}, which was not made")
        elif sha256 != known[number]:
            found.breach(where, f"version {number} has the hash {_short(known[number])}, this says {_short(sha256)}")
    _contents(evidence, found)
    return found


def _published(evidence: Evidence, found: Finding) -> dict[int, str]:
    """Hash by number; says so where two hashes bear one number."""
    known: dict[int, str] = {}

    def learn(where: str, number: int, sha256: str) -> None:
        found.checked += 1
        if known.setdefault(number, sha256) != sha256:
            found.breach(where, f"version {number} has the hash {_short(sha256)}, and had {_short(known[number])}")

    for record in evidence.logged("trainer_started", "version_committed", "rolled_back"):
        assert record.label is not None
        learn(record.where, record.label.policy_version, record.label.weights_sha256)
    for event in evidence.of(*_MADE):
        number = _number(event["policy_version"])
        if evidence.records is not None and number not in known:
            found.breach(event.where, f"version {number} is published, and the log knows nothing of it")
        learn(event.where, number, str(event["weights_sha256"]))
    report = read_json(evidence.run_dir.report) or {}
    if known and 0 not in known and (initial := report.get("initial_weights_sha256")):
        learn("report.json:1", 0, str(initial))
    return known


def _tokens(evidence: Evidence, found: Finding, known: dict[int, str]) -> None:
    """A batch holds only tokens of weights that had been made when it was formed."""
    made: dict[int, str] = {}
    for record in evidence.logged("trainer_started", "version_committed", "rolled_back", "batch_formed"):
        if record.label is not None:
            made[record.label.policy_version] = record.label.weights_sha256
        for group in record.groups:
            for label in group.labels:
                found.checked += 1
                if made.get(label.policy_version) != label.weights_sha256:
                    found.breach(record.where, f"group {group.group_id} was sampled by {label}, which was not made yet")
    for event in evidence.of("group_trained"):
        found.checked += 1
        number = _number(event["policy_version"])
        if number not in known and 0 in known:
            found.breach(event.where, f"group {event['group_id']} was sampled by version {number}, which was not made")
    if evidence.records is None:
        found.notes.append("there is no log: of trained tokens only the version's number was looked at")


def _labelled(evidence: Evidence) -> Iterator[tuple[str, dict[str, Any]]]:
    """What else bears a label of this run."""
    for event in evidence.of("evaluation_finished", "best_checkpoint"):
        if event["weights_sha256"] is not None:
            yield event.where, dict(event.facts)
    folder = evidence.run_dir.path
    for path in [*sorted(folder.glob("evaluation-*.json")), folder / "best.json"]:
        if (facts := read_json(path)) is not None and "weights_sha256" in facts:
            yield f"{path.name}:1", facts
    for path in _checkpoints(folder):
        if (facts := read_json(path / "state.json")) is not None:
            yield f"checkpoints/{path.name}/state.json:1", facts
    report = read_json(evidence.run_dir.report)
    if report is not None and report.get("final_weights_sha256"):
        yield (
            "report.json:1",
            {"policy_version": report.get("policy_version"), "weights_sha256": report["final_weights_sha256"]},
        )


def _contents(evidence: Evidence, found: Finding) -> None:
    """The bytes themselves, as far as they are here: checkpoints by their own hash, the policy by that of its label."""
    folder, report = evidence.run_dir.path, read_json(evidence.run_dir.report)
    for path in _checkpoints(folder):
        meta, file = read_json(path / "state.json"), path / "state.safetensors"
        if meta is None or not file.exists() or not meta.get("tensors_sha256"):
            continue  # one that is being written, or removed
        found.checked += 1
        if file_sha256(file) != meta["tensors_sha256"]:
            found.breach(f"checkpoints/{path.name}/state.safetensors:1", "its bytes are not those that were written")
    weights = folder / "policy" / "model.safetensors"
    if evidence.state == "finished" and report is not None and weights.exists():
        found.checked += 1
        reached = policy_sha256(weights)
        if reached is None:
            found.breach("policy/model.safetensors:1", "it is no safetensors file with bf16 or fp32 weights")
        elif reached != report.get("final_weights_sha256"):
            said = _short(report.get("final_weights_sha256"))
            found.breach(
                "policy/model.safetensors:1", f"its weights have the hash {_short(reached)}, the run's end {said}"
            )
    found.notes.append("that a version was trained by its batch, `tersely replay` shows")


def _checkpoints(folder: Path) -> list[Path]:
    return [path for path in sorted((folder / "checkpoints").glob("step-*")) if path.name[5:].isdigit()]


def _number(value: Any) -> int:
    return value if isinstance(value, int) else -1


def _short(sha256: Any) -> str:
    return str(sha256)[:8]
