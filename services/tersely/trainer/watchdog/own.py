"""Stalls that come from the trainer, the queue server, the clock, or the groups themselves."""

from __future__ import annotations

from tersely.trainer.watchdog.finding import Finding
from tersely.trainer.watchdog.limits import Late
from tersely.trainer.watchdog.pace import CHECKPOINT, EVALUATION, LEARN, LOG, PUBLISH
from tersely.trainer.watchdog.snapshot import Node, Snapshot, Trouble

REDIS_SECONDS = 8.0
"""A server that fails for so long does not just start again."""
DISK_BYTES = 64 << 20
"""With less than this free, a disk is what holds writing up."""
_JUMP_SECONDS = 90.0
_MANY = 8
_IDLE_CPU_SHARE = 0.05
_REFUSALS = ("MISCONF", "READONLY", "OOM", "maxmemory")
_DISK_WORDS = ("no space left", "disk quota", "no room on the disk")
_WRITES = {LOG: "the log", PUBLISH: "the new version", CHECKPOINT: "the checkpoint"}


def redis_fails(snapshot: Snapshot) -> Finding | None:
    """The server does not answer, or takes nothing."""
    for trouble in (snapshot.reading, snapshot.writing):
        if trouble is not None and trouble.seconds >= REDIS_SECONDS and trouble.kind == "redis_unreachable":
            return Finding(
                "redis_unreachable",
                "redis",
                f"The queue server has not answered for {trouble.seconds:.0f} s.",
                trouble.message,
                "Start it again, or mend the network to it; nothing is lost, and the run goes on by itself.",
            )
    for trouble in (snapshot.writing, snapshot.reading):
        if trouble is not None and trouble.seconds >= REDIS_SECONDS:
            return _refused(trouble)
    return None


def _refused(trouble: Trouble) -> Finding:
    if "MISCONF" in trouble.message:
        change = "Make room on the disk of the queue server (it can't save); then it takes writes again by itself."
    elif "READONLY" in trouble.message:
        change = "Point queue.url at the primary: this server is a replica."
    elif trouble.kind == "redis_auth":
        change = "Give the user the rights of its role again."
    else:
        change = "Raise the server's maxmemory (CONFIG SET maxmemory), or free what else lies in it; nothing is lost."
    return Finding(
        "redis_refuses_writes",
        "redis",
        f"The queue server has taken no writes for {trouble.seconds:.0f} s.",
        trouble.message,
        change,
    )


def trainer_holds(snapshot: Snapshot, late: Late) -> Finding:
    """The trainer's own work takes longer than it did."""
    assert snapshot.phase is not None
    if snapshot.phase.name == LEARN:
        return _learner(snapshot, late)
    free, what = snapshot.disk_free_bytes, _WRITES.get(snapshot.phase.name, "the run's files")
    if free is not None and free < DISK_BYTES:
        return Finding(
            "disk_full",
            "disk of the run directory",
            f"Writing {what} takes {late.seconds:.0f} s, and the disk has {free / 1e6:.0f} MB left.",
            "The disk of the run directory is full, or nearly.",
            "Make room; a run that ended for it goes on with --resume.",
        )
    return Finding(
        "writing_slow",
        "disk of the run directory",
        f"Writing {what} takes {late.seconds:.0f} s; {_usual(late)}",
        "The disk is slow, or something else keeps it or the processor busy.",
        "See what else writes to that disk; a network disk is a poor place for a run directory.",
    )


def _learner(snapshot: Snapshot, late: Late) -> Finding:
    share = snapshot.cpu_share
    if share is not None and share < _IDLE_CPU_SHARE:
        return Finding(
            "learner_stuck",
            "learner",
            f"The learner has been at one batch for {late.seconds:.0f} s and hardly computes"
            f" ({100 * share:.0f} % of a core).",
            "It waits for something: a GPU that does not answer, another rank, or memory that is swapped out.",
            "Look at the GPU and at memory; end the trainer and go on with --resume if it stays so.",
        )
    used = "" if share is None else f" It computes ({100 * share:.0f} % of a core)."
    return Finding(
        "learner_slow",
        "learner",
        f"The learner has been at one batch for {late.seconds:.0f} s; {_usual(late)}{used}",
        "Longer completions than before, other work on this machine, or one that slows down because it is hot.",
        "See what else runs here; `tersely plan` says what a step needs.",
    )


def node_without_disk(snapshot: Snapshot) -> Finding | None:
    """A worker or scorer says that its disk is full."""
    for node in snapshot.nodes:
        said = node.last_error.lower()
        if node.role != "trainer" and _is_new(node, snapshot) and any(word in said for word in _DISK_WORDS):
            return Finding(
                "disk_full",
                f"disk of {node.called}",
                f"{node.called} says: {node.last_error}",
                "Its disk has no room for the model's files or its cache.",
                "Make room on that machine; it tries again by itself.",
                node.node_id,
            )
    return None


def _is_new(node: Node, snapshot: Snapshot) -> bool:
    """Whether a node's error came up while nothing went on, or it has finished nothing since."""
    return node.error_seconds is not None and node.error_seconds <= node.still_seconds + 1.0


def all_fall_out(snapshot: Snapshot) -> Finding | None:
    """Nearly every group that has come back for this step, and that is more than a batch, can't be trained on."""
    assert snapshot.phase is not None
    count = sum(snapshot.fell_out.values())
    if count < max(_MANY, snapshot.groups_per_step) or count < 0.9 * snapshot.phase.arrived:
        return None
    return groups_fall_out(snapshot)


def groups_fall_out(snapshot: Snapshot) -> Finding | None:
    """Groups come back, but most of them can't be trained on."""
    assert snapshot.phase is not None
    fell = snapshot.fell_out
    count, arrived = sum(fell.values()), snapshot.phase.arrived
    if count < 2 or 2 * count < arrived:
        return None
    outcome = max(fell, key=lambda name: fell[name])
    seen = f"{fell[outcome]} of the {max(arrived, count)} groups that came back for this step"
    if outcome == "stale":
        return _behind(snapshot, seen)
    if outcome == "quarantined":
        failed = [node for node in snapshot.nodes if node.last_error and node.role != "trainer"]
        named = failed[0].called if failed else "workers"
        return Finding(
            "groups_fail",
            named,
            f"{seen} went to the quarantine.",
            failed[0].last_error if failed else "Workers or scorers fail at them.",
            "See the log of that node, and `tersely quarantine list`.",
            failed[0].node_id if failed else "",
        )
    if 2 * snapshot.absent >= fell[outcome]:
        return _absent(snapshot, seen)
    return Finding(
        "no_signal",
        "rewards",
        f"{seen} had no signal: all their completions got the same reward.",
        "The completions of a group are all alike, or all are cut off at the limit.",
        "Look at samples.jsonl; raise run.group_size or sampling.temperature, or choose another target.",
    )


def _behind(snapshot: Snapshot, seen: str) -> Finding:
    behind = sorted(snapshot.living("rollout"), key=lambda node: node.policy_version)
    oldest = behind[0] if behind else None
    lag = snapshot.policy_version - oldest.policy_version if oldest else 0
    return Finding(
        "worker_behind",
        oldest.called if oldest else "workers",
        f"{seen} were too old; the worker furthest behind holds a version {lag} older than the newest.",
        f"It takes weights more slowly than they are made (run.max_staleness is {snapshot.max_staleness}).",
        "Mend its link to the trainer, let it generate less at a time, or raise run.max_staleness.",
        oldest.node_id if oldest else "",
    )


def _absent(snapshot: Snapshot, seen: str) -> Finding:
    reason = snapshot.absent_reason
    if "judge" in reason.lower():
        breaker = "circuit_open" in reason
        return Finding(
            "judge_breaker_open" if breaker else "rewards_absent",
            "judge",
            f"{seen} got no reward from the judge: {reason}",
            "The judge's endpoint failed too often and is left alone for a while."
            if breaker
            else "The judge abstains: its endpoint fails, its budget is used up, or it is not reached.",
            "See the judge's log and its endpoint; it is asked again by itself once it answers.",
        )
    return Finding(
        "rewards_absent",
        "rewards",
        f"{seen} lacked a reward: {reason}",
        "A reward can't be computed for these texts or this data.",
        "See absent_reasons in samples.jsonl; a reward of weight 0 is shown and not trained on.",
    )


def clock_jumped(snapshot: Snapshot, now: float) -> Finding | None:
    """A clock moved while the step was going on, which makes leases and heartbeats run out, or last."""
    assert snapshot.phase is not None
    for jump in reversed(snapshot.jumps):
        if jump.at >= snapshot.phase.began and now - jump.at < _JUMP_SECONDS:
            return Finding(
                "clock_jumped",
                "clock",
                f"The clock of {jump.where} jumped by {jump.seconds:+.0f} s, {now - jump.at:.0f} s ago.",
                "Leases and heartbeats are timed by it: they ran out at once, or last as much longer.",
                f"Nothing, where it went forward: it mends itself within {snapshot.lease_seconds:.0f} s."
                " Where it went back, end the workers: they join again. Have the clock kept by NTP.",
            )
    return None


def groups_missing(snapshot: Snapshot) -> Finding | None:
    """Groups are on their way that nobody has."""
    if snapshot.missing == 0 or any(stream.entries for stream in snapshot.streams.values()):
        return None
    return Finding(
        "groups_missing",
        "redis",
        f"{snapshot.missing} groups that were sent are in no stream.",
        "The queue server was emptied, or lost what it held.",
        "Nothing: they are sent again within seconds. If it lasts, look who else uses that server.",
    )


def evaluation_holds(snapshot: Snapshot) -> Finding | None:
    """The trainer waits for an evaluation that goes on, but slowly."""
    if snapshot.phase is None or snapshot.phase.name != EVALUATION:
        return None
    left = snapshot.stream("eval_prompts").entries
    return Finding(
        "evaluation_holds",
        "evaluation",
        f"Training waits for an evaluation; {left} of its prompts are not generated yet.",
        "It takes longer than those before.",
        "Nothing, if it goes on; fewer evaluation.prompts or more workers make it shorter.",
    )


def unexplained(snapshot: Snapshot) -> Finding:
    """Nothing of what is known explains it: the facts themselves."""
    streams = ", ".join(
        f"{name} {stream.waiting} waiting + {stream.leased} leased" for name, stream in snapshot.streams.items()
    )
    nodes = "; ".join(f"{node.called}: {node.state} {node.detail}".strip() for node in snapshot.nodes)
    return Finding(
        "unexplained",
        "run",
        f"Nothing comes back. Queues: {streams or 'unknown'}. Nodes: {nodes or 'none'}.",
        "None of the known causes fits.",
        "See the logs of the services, and please report it with them.",
    )


def _usual(late: Late) -> str:
    return f"by the run's own history that should be less than {late.limit_seconds:.0f} s."
