"""All invariants of one run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tersely.invariants import groups, leases, steps, versions
from tersely.invariants.evidence import EVENTS, LOG, Evidence
from tersely.invariants.finding import BROKEN, Finding
from tersely.supervise.run_dir import RunDir


def files_intact(evidence: Evidence) -> Finding:
    """The log is whole; events that can't be read are counted."""
    found = Finding(
        "files_intact", "the log is whole but for a record torn by a crash at its end", "records and events"
    )
    found.checked = len(evidence.records or ()) + len(evidence.events)
    if evidence.log_fault:
        found.breach(f"{LOG}:{len(evidence.records or ()) + 1}", evidence.log_fault)
    if evidence.unreadable:
        lines = ", ".join(str(line) for line in evidence.unreadable[:10])
        found.notes.append(f"{len(evidence.unreadable)} lines of {EVENTS} are no events, torn by crashes: {lines}")
    if evidence.records is None and not evidence.events:
        return found.not_recorded(f"neither {EVENTS} nor {LOG} is there")
    if evidence.records is None:
        found.notes.append(f"{LOG} is not there")
    return found


CHECKS: Sequence[Callable[[Evidence], Finding]] = (
    files_intact,
    groups.conservation,
    groups.trained_once,
    groups.samples,
    steps.consecutive,
    steps.full,
    versions.monotone,
    versions.labels,
    leases.leases,
)


@dataclass(frozen=True, slots=True)
class Report:
    """What was found in one run.

    Attributes:
        run_dir: The run.
        run_id: Its id; empty where it is not recorded.
        state: `finished`, `drained` or `unfinished`.
        findings: One per invariant.
    """

    run_dir: Path
    run_id: str
    state: str
    findings: tuple[Finding, ...]

    @property
    def breaches(self) -> int:
        """In all."""
        return sum(len(finding.breaches) for finding in self.findings)

    @property
    def broken(self) -> list[str]:
        """Names of the invariants that do not hold."""
        return [finding.name for finding in self.findings if finding.state == BROKEN]

    def to_json(self) -> dict[str, Any]:
        """As `tersely invariants --json` shows it."""
        return {
            "run_dir": str(self.run_dir),
            "run_id": self.run_id,
            "state": self.state,
            "ok": not self.breaches,
            "breaches": self.breaches,
            "invariants": [finding.to_json() for finding in self.findings],
        }


def check_run(run_dir: Path) -> Report:
    """Holds a run, finished or not, against all invariants; nothing in it is changed.

    Args:
        run_dir: Its directory, or a copy.

    Raises:
        RunDirMissing: There is no run.
    """
    evidence = Evidence.read(RunDir(run_dir.resolve()))
    ids = [str(event["run_id"]) for event in evidence.of("run_started", "run_resumed")]
    return Report(run_dir, ids[-1] if ids else "", evidence.state, tuple(check(evidence) for check in CHECKS))
