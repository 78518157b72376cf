"""Groups: each one issued comes to exactly one end, none is trained twice, and every row of it is there once."""

from __future__ import annotations

from collections import Counter
from typing import Any

from tersely.invariants.evidence import EVENTS, LOG, OUTCOMES, SAMPLES, Evidence
from tersely.invariants.finding import Finding
from tersely.supervise.run_dir import read_json


def conservation(evidence: Evidence) -> Finding:
    """Each group issued is in flight, or trained, stale, no_signal or quarantined, and never two of them."""
    found = Finding(
        "conservation", "every group issued comes to exactly one end; the numbers of issue have no gap", "groups"
    )
    issued: dict[str, int] = {}
    ends: dict[str, str] = {}
    places: dict[str, str] = {}
    due = 0
    for event in evidence.of("group_issued", *OUTCOMES):
        group_id = str(event["group_id"])
        if event.kind == "group_issued":
            if group_id in issued:
                found.breach(event.where, f"group {group_id} is issued a second time; the first was {issued[group_id]}")
            elif event["issue_number"] != due:
                found.breach(event.where, f"issue number {event['issue_number']} stands where {due} is due")
            if isinstance(event["issue_number"], int) and group_id not in issued:
                due = event["issue_number"] + 1
            issued.setdefault(group_id, event.line)
            continue
        if group_id not in issued:
            found.breach(event.where, f"group {group_id} ends as {event.kind} and was never issued")
        elif group_id in ends:
            found.breach(event.where, f"group {group_id} ends as {event.kind}, and has ended as {ends[group_id]}")
        ends.setdefault(group_id, event.kind)
        places.setdefault(group_id, event.where)
    found.checked = len(issued)
    if not issued and not any(evidence.logged("group_issued")):
        return found.not_recorded("no group was issued, or issues are not recorded by this run")
    for group_id in issued.keys() - ends.keys() if evidence.state == "finished" else ():
        found.breach(f"{EVENTS}:{issued[group_id]}", f"group {group_id} has no end, though the run is finished")
    _totals(evidence, found, len(issued), Counter(kind.removeprefix("group_") for kind in ends.values()))
    _against_log(evidence, found, issued, {group_id: (kind, places[group_id]) for group_id, kind in ends.items()})
    if evidence.state != "finished":
        found.notes.append(f"{len(issued.keys() - ends.keys())} groups are open: the run is {evidence.state}")
    return found


def _totals(evidence: Evidence, found: Finding, issued: int, counts: Counter[str]) -> None:
    """What a finished run says of itself."""
    if evidence.state != "finished":
        return
    finished = list(evidence.of("run_finished"))[-1]
    said: list[tuple[str, Any]] = [(finished.where, finished["groups"])]
    report = read_json(evidence.run_dir.report)
    if report is not None:
        said.append((f"{evidence.run_dir.report.name}:1", report.get("groups")))
    for where, groups in said:
        if not isinstance(groups, dict):
            found.notes.append(f"{where} has no books")
            continue
        outcomes = {kind.removeprefix("group_"): counts[kind.removeprefix("group_")] for kind in OUTCOMES}
        for name, right in {"issued": issued, "in_flight": 0, **outcomes}.items():
            if groups.get(name) != right:
                found.breach(where, f"the books say {name} {groups.get(name)}, the events {right}")


def _against_log(evidence: Evidence, found: Finding, issued: dict[str, int], ends: dict[str, tuple[str, str]]) -> None:
    if evidence.records is None:
        found.notes.append("there is no log to hold the events against")
        return
    logged_issues: dict[str, str] = {}
    logged_ends: dict[str, tuple[str, str]] = {}
    replayed: dict[str, str] = {}
    due = 0
    for record in evidence.logged("group_issued"):
        if record["issue_number"] != due:
            found.breach(record.where, f"issue number {record['issue_number']} is logged where {due} is due")
        due = record["issue_number"] + 1
        logged_issues[record["group_id"]] = record.where
        if original := record["replay_of"]:
            if original in replayed:
                found.breach(record.where, f"quarantined group {original} is tried again twice: {replayed[original]}")
            replayed[original] = record.where
    for record in evidence.logged("group_dropped", "batch_formed"):
        dropped = record.kind == "group_dropped"
        for group_id in [record["group_id"]] if dropped else [group.group_id for group in record.groups]:
            kind = f"group_{record['outcome']}" if dropped else "group_trained"
            if group_id not in logged_issues:
                found.breach(record.where, f"group {group_id} is logged as {kind} and was never issued")
            elif group_id in logged_ends:
                before, where = logged_ends[group_id]
                found.breach(record.where, f"group {group_id} is logged as {kind}, after {before} at {where}")
            logged_ends.setdefault(group_id, (kind, record.where))
    for original, where in replayed.items():
        if logged_ends.get(original, ("", ""))[0] != "group_quarantined":
            found.breach(where, f"group {original} is tried again, but did not end in the quarantine")
    for group_id, line in issued.items():
        if group_id not in logged_issues:
            found.breach(f"{EVENTS}:{line}", f"group {group_id} is issued in the events and not in the log")
    for group_id, (kind, where) in ends.items():
        if logged_ends.get(group_id, ("", ""))[0] != kind:
            found.breach(where, f"group {group_id} is {kind} in the events, {_said(logged_ends, group_id)} in the log")
    if evidence.state == "unfinished":
        return  # what the log has and the events lack, the next trainer writes
    for group_id in logged_issues.keys() - issued.keys():
        found.breach(logged_issues[group_id], f"group {group_id} is issued in the log and not in the events")
    for group_id in logged_ends.keys() - ends.keys():
        kind, where = logged_ends[group_id]
        found.breach(where, f"group {group_id} is {kind} in the log, and has no end in the events")


def _said(ends: dict[str, tuple[str, str]], group_id: str) -> str:
    return ends[group_id][0] if group_id in ends else "without an end"


def trained_once(evidence: Evidence) -> Finding:
    """No group is in two batches."""
    found = Finding("trained_once", "no group is trained twice, by the events and by the log", "groups trained")
    first: dict[str, str] = {}
    for event in evidence.of("group_trained"):
        group_id = str(event["group_id"])
        if group_id in first:
            found.breach(
                event.where, f"group {group_id} is trained at step {event['step']}, and was at {first[group_id]}"
            )
        first.setdefault(group_id, event.where)
    logged: dict[str, str] = {}
    for record in evidence.logged("batch_formed"):
        for group in record.groups:
            if group.group_id in logged:
                found.breach(
                    record.where, f"group {group.group_id} is in this batch, and was in {logged[group.group_id]}"
                )
            logged.setdefault(group.group_id, record.where)
    found.checked = len(first.keys() | logged.keys())
    if not first and not logged:
        return found.not_recorded("no group was trained yet, or it is not recorded by this run")
    if evidence.records is None:
        found.notes.append(f"{LOG} is not there: by the events alone")
    return found


def samples(evidence: Evidence) -> Finding:
    """samples.jsonl has every completion of every trained group once."""
    found = Finding(
        "samples", "every completion of a trained group is kept once, and none of a group that wasn't", "rows"
    )
    if not evidence.run_dir.samples.exists():
        return found.not_recorded(f"{SAMPLES} is not there")
    trained = {str(event["group_id"]): event.where for event in evidence.of("group_trained")}
    fell = {str(e["group_id"]): e.kind.removeprefix("group_") for e in evidence.of("group_stale", "group_no_signal")}
    seen: dict[tuple[str, str], int] = {}
    rows: Counter[str] = Counter()
    for line, row in evidence.samples():
        if row.get("outcome") == "evaluation":
            continue
        found.checked += 1
        group_id, index = str(row.get("group_id")), str(row.get("sample_index"))
        if (group_id, index) in seen:
            found.breach(
                f"{SAMPLES}:{line}", f"sample {index} of group {group_id} is there twice: {seen[group_id, index]}"
            )
        seen.setdefault((group_id, index), line)
        rows[group_id] += 1
        # A row is written before its event: of a run that goes on, or was killed, the last ones may have none.
        wrong = group_id in fell if row.get("outcome") == "trained" else group_id in trained
        if wrong:
            end = fell.get(group_id, "trained")
            found.breach(
                f"{SAMPLES}:{line}", f"a row of group {group_id} says {row.get('outcome')}; the group is {end}"
            )
    size = evidence.setting("run", "group_size")
    for group_id, where in trained.items():
        if rows[group_id] == 0 or (size is not None and rows[group_id] != size):
            found.breach(
                where, f"group {group_id} is trained; {SAMPLES} has {rows[group_id]} of its {size} completions"
            )
    return found
