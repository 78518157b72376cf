"""Steps: they follow each other over resumes and roll-backs, and each trains on as many groups as it should."""

from __future__ import annotations

from collections import Counter
from typing import Any

from tersely.invariants.evidence import EVENTS, Evidence
from tersely.invariants.finding import Finding


def consecutive(evidence: Evidence) -> Finding:
    """Steps 1, 2, 3 ..., each once, whoever trained them."""
    found = Finding(
        "steps_consecutive", "steps follow each other, each once, over resumes and roll-backs", "steps finished"
    )
    step = incarnation = 0
    for event in evidence.of("step_finished", "rolled_back", "run_started", "run_resumed", "run_drained"):
        if event.kind == "step_finished":
            if event["step"] != step + 1:
                found.breach(event.where, f"step {event['step']} is finished after step {step}")
            step = _number(event["step"])
            found.checked += 1
        elif event.kind == "rolled_back":
            # One that a trainer had no time to write down is written after the steps that follow it were trained.
            if not (_number(event["to_step"]) < _number(event["step"]) <= step):
                found.breach(event.where, f"a roll-back after step {event['step']} to {event['to_step']}, at {step}")
        elif event.kind == "run_drained":
            if event["step"] != step:
                found.breach(event.where, f"drained at step {event['step']}, but the last one finished is {step}")
        else:
            if _number(event["incarnation"]) <= incarnation:
                found.breach(event.where, f"trainer {event['incarnation']} starts after trainer {incarnation}")
            incarnation = _number(event["incarnation"])
    if evidence.state == "finished" and (steps := evidence.setting("run", "steps")) is not None and step != steps:
        found.breach(list(evidence.of("run_finished"))[-1].where, f"finished after step {step} of {steps}")
    logged = _log(evidence, found)
    if evidence.state != "unfinished" and evidence.records is not None and logged != step:
        line = evidence.events[-1].line if evidence.events else 1
        found.breach(f"{EVENTS}:{line}", f"the events end with step {step}, the log with step {logged}")
    if found.checked == 0 and logged == 0:
        return found.not_recorded("no step was finished yet, or steps are not recorded by this run")
    return found


def _log(evidence: Evidence, found: Finding) -> int:
    """Holds the log's steps against each other; the last one that has a batch."""
    last = incarnation = 0
    batches: dict[int, str] = {}
    versions: set[int] = set()
    for record in evidence.logged("trainer_started", "batch_formed", "version_committed", "rolled_back"):
        step = record["step"]
        if record.kind == "batch_formed":
            if step != last + 1:
                found.breach(record.where, f"the batch of step {step} follows on that of step {last}")
            last = step
            batches[step] = record.where
        elif record.kind == "version_committed":
            if not 0 < step <= last:
                found.breach(record.where, f"step {step} makes a version and has no batch: the last is of step {last}")
            versions.add(step)
        elif record.kind == "rolled_back":
            if not record["to_step"] < step <= last:
                found.breach(record.where, f"a roll-back after step {step} to {record['to_step']}, at {last}")
        else:
            if record["incarnation"] <= incarnation:
                found.breach(record.where, f"trainer {record['incarnation']} starts after trainer {incarnation}")
            incarnation = record["incarnation"]
            if (start := record["checkpoint_step"]) is not None and start > last:
                found.breach(record.where, f"begins with a checkpoint of step {start}, but the last batch is of {last}")
    for step, where in batches.items():
        # The last two of a run that goes on may be on their way to the log.
        if step not in versions and (evidence.state != "unfinished" or step < last - 1):
            found.breach(where, f"step {step} has a batch, and made no version")
    return last


def full(evidence: Evidence) -> Finding:
    """Every step trains on groups_per_step groups, or says that it could not."""
    found = Finding("step_groups", "every step trains on run.groups_per_step groups, or an alarm says why not", "steps")
    want = evidence.setting("run", "groups_per_step")
    finished = {_number(event["step"]): event for event in evidence.of("step_finished")}
    batches = {record["step"]: record for record in evidence.logged("batch_formed")}
    if want is None:
        return found.not_recorded("the recipe, which says how many groups a step has, is not recorded by this run")
    if not finished and not batches:
        return found.not_recorded("no step was finished yet, or steps are not recorded by this run")
    short = {
        _number(event["step"]): _number(event["groups"])
        for event in evidence.of("alarm")
        if event["name"] == "batch_short"
    }
    trained = Counter(_number(event["step"]) for event in evidence.of("group_trained"))
    found.checked = len(finished.keys() | batches.keys())
    if short:
        found.notes.append(f"{len(short)} steps are short and say so (alarm batch_short)")
    for step, event in finished.items():
        right = short.get(step, want)
        if trained[step] != right:
            found.breach(event.where, f"step {step} has {trained[step]} events group_trained, where {right} are due")
        if event["groups"] is not None and event["groups"] != right:
            found.breach(event.where, f"step {step} says that it has {event['groups']} groups, where {right} are due")
    for step, record in batches.items():
        # The alarm is written before the batch is logged.
        if len(record.groups) != short.get(step, want):
            right = short.get(step, want)
            found.breach(
                record.where, f"the batch of step {step} has {len(record.groups)} groups, where {right} are due"
            )
    for event in evidence.of("group_trained") if evidence.state != "unfinished" else ():
        if _number(event["step"]) not in finished:
            found.breach(event.where, f"a group is trained at step {event['step']}, which is never finished")
    return found


def _number(value: Any) -> int:
    return value if isinstance(value, int) else -1
