"""One picture of a run, merged from what its trainer, its supervisor and the operating system say."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any

from tersely.supervise.files import pid_alive
from tersely.supervise.run_dir import RunDir, read_json, read_json_value
from tersely.view.stalls import trainer_silent

STALE_SECONDS = 10.0
ENDED = ("finished", "failed", "drained", "dead")
NOT_YET: Mapping[str, Any] = {
    "step": 0,
    "steps": None,
    "policy_version": -1,
    "incarnation": None,
    "waiting_for": "the trainer to start",
    "groups": {
        "issued": 0,
        "trained": 0,
        "stale": 0,
        "no_signal": 0,
        "quarantined": 0,
        "in_flight": 0,
        "duplicates": 0,
    },
    "queues": {},
    "last_step": None,
    "evaluation": None,
    "alarms": [],
    "stall": None,
}
"""What a status says before the trainer has written its first: every key is always there."""
SERVICE_ROLES = ("trainer", "rollout", "scorer", "judge")


def read_status(run_dir: RunDir) -> dict[str, Any]:
    """Everything in status.json, corrected by what is known to be newer.

    Adds to it: `run_dir`; `trainer` (run.json); `processes` (children of `tersely up`); `age_seconds` since the
    trainer wrote; `stale`; `seconds` since the trainer started, where status.json has none. `state` becomes "dead"
    when the trainer's process is gone before its run ended ("drained" when it was draining). `nodes` gets local
    processes that have not reported yet ("starting") and loses those whose process is gone. `stall` tells
    of a trainer that is there and silent.

    Raises:
        RunDirMissing: No run there.
    """
    run_dir.check_exists()
    status = read_json(run_dir.status) or {}
    run = read_json(run_dir.run) or {}
    listed = read_json_value(run_dir.processes)
    processes = [row for row in listed if isinstance(row, dict)] if isinstance(listed, list) else []
    written = status.get("time")
    age = max(0.0, time.time() - written) if isinstance(written, int | float) else None
    state = _state(str(status.get("state", "starting")), run, processes, age)
    started = run.get("started")
    stale = state not in ENDED and age is not None and age > STALE_SECONDS
    stall = trainer_silent(status, age or 0.0) if stale and state != "starting" else status.get("stall")
    return {
        "seconds": written - started if isinstance(written, float) and isinstance(started, float) else None,
        **NOT_YET,
        **status,
        "run_id": status.get("run_id", run.get("run_id")),
        "run_dir": str(run_dir.path),
        "state": state,
        "age_seconds": age,
        "stale": stale,
        "stall": stall if state not in ENDED else None,
        "nodes": _nodes(status.get("nodes") or [], run, processes, state),
        "trainer": run,
        "processes": processes,
    }


def _state(state: str, run: Mapping[str, Any], processes: Sequence[Mapping[str, Any]], age: float | None) -> str:
    if state in ENDED:
        return state
    supervised = next((row for row in processes if row.get("role") == "trainer"), None)
    if supervised is not None and supervised.get("pid") and pid_alive(int(supervised["pid"])):
        return state if run.get("pid") == supervised["pid"] else "starting"
    pid = run.get("pid")
    if isinstance(pid, int) and _is_here(run.get("host")):
        gone = not pid_alive(pid)
    elif supervised is not None:
        gone = True
    else:
        gone = age is not None and age > 6 * STALE_SECONDS
    if not gone:
        return state
    if supervised is not None and supervised.get("state") in ("backoff", "waiting") and _someone_alive(processes):
        return "starting"
    return "drained" if state == "draining" else "dead"


def _someone_alive(processes: Sequence[Mapping[str, Any]]) -> bool:
    return any(row.get("pid") and pid_alive(int(row["pid"])) for row in processes)


def _nodes(
    heartbeats: Sequence[Mapping[str, Any]], run: Mapping[str, Any], processes: Sequence[Mapping[str, Any]], state: str
) -> list[dict[str, Any]]:
    nodes = [dict(node) for node in heartbeats if not _is_gone(node)]
    known = {(node.get("pid")) for node in nodes if _is_here(node.get("host"))}
    local = [(row.get("role"), row.get("pid"), row.get("name")) for row in processes]
    if not local:
        local = [("trainer", run.get("pid"), "trainer")] if _is_here(run.get("host")) else []
    for role, pid, name in local:
        if role not in SERVICE_ROLES or not isinstance(pid, int) or pid in known or not pid_alive(pid):
            continue
        reports = role in ("rollout", "scorer")  # the others need not send heartbeats
        nodes.append(
            {
                "node_id": name,
                "role": role,
                "pid": pid,
                "host": socket.gethostname(),
                "state": "starting" if reports else (state if role == "trainer" else "running"),
            }
        )
    return sorted(nodes, key=lambda node: (_role_order(node.get("role")), str(node.get("node_id"))))


def _is_gone(node: Mapping[str, Any]) -> bool:
    pid = node.get("pid")
    return isinstance(pid, int) and _is_here(node.get("host")) and not pid_alive(pid)


def _is_here(host: object) -> bool:
    return host in (None, "", "localhost", "127.0.0.1", socket.gethostname())


def _role_order(role: object) -> int:
    return SERVICE_ROLES.index(str(role)) if role in SERVICE_ROLES else len(SERVICE_ROLES)
