"""Stalls between issue and completion."""

from __future__ import annotations

from collections.abc import Sequence

from tersely.trainer.watchdog.finding import Finding
from tersely.trainer.watchdog.limits import Late
from tersely.trainer.watchdog.snapshot import Node, Snapshot, Stream

_WAITS_FOR_WEIGHTS = frozenset({"swapping", "starting"})
_SEEN_STILL_SECONDS = 5.0


def nobody_there(snapshot: Snapshot) -> Finding | None:
    """There is work, and no node of the role that does it."""
    to_generate = snapshot.stream("prompts").entries + snapshot.stream("eval_prompts").entries
    to_score = snapshot.stream("completions").entries
    if to_generate and not snapshot.living("rollout"):
        return _none(snapshot, "no_worker", "rollout", f"{to_generate} groups are to be generated")
    if to_score and not snapshot.living("scorer"):
        return _none(snapshot, "no_scorer", "scorer", f"{to_score} generated groups are to be scored")
    return None


def _none(snapshot: Snapshot, name: str, role: str, work: str) -> Finding:
    lost = snapshot.lost(role)
    if lost:
        last = lost[0]
        cause = f"{last.called} was last heard of {last.silent_seconds:.0f} s ago"
        cause += f"; it was {last.state} {last.detail}".rstrip() + "." if last.state else "."
        if last.last_error:
            cause += f" Its last error: {last.last_error}"
    else:
        cause = f"No {role} has joined this run since its trainer started."
    return Finding(
        name,
        lost[0].called if lost else role,
        f"{work}, and no {role} lives.",
        cause,
        f"Start one (`tersely {role} --trainer HOST:PORT`); under `tersely up` see logs/{role}-0.log for why it ends.",
        lost[0].node_id if lost else "",
    )


def workers_hold(snapshot: Snapshot, late: Late) -> Finding | None:
    """Groups are with the workers, or wait for them."""
    stream, held_out = snapshot.stream("prompts"), snapshot.stream("eval_prompts")
    workers = snapshot.living("rollout")
    if not workers or not stream.entries + held_out.entries:
        return None
    return (
        _fetch_stuck(snapshot, workers, late)
        or dead_leases(snapshot, _joined(stream, held_out), workers, "rollout")
        or _not_leasing(snapshot, stream, held_out, workers)
        or _stuck(_joined(stream, held_out), workers, late)
        or _slow(snapshot, stream, held_out, workers, late)
    )


def dead_leases(snapshot: Snapshot, stream: Stream, living: Sequence[Node], role: str) -> Finding | None:
    """All that is left is leased by nodes that are gone."""
    alive = {node.node_id for node in living}
    dead = {name: count for name, count in stream.holders.items() if name not in alive and count}
    if stream.waiting or not dead or any(count for name, count in stream.holders.items() if name in alive):
        return None
    name = max(dead, key=lambda node_id: dead[node_id])
    known = {node.node_id: node for node in (*snapshot.nodes, *snapshot.gone)}
    called = known[name].called if name in known else f"{role} {name}"
    silent = f", last heard of {known[name].silent_seconds:.0f} s ago" if name in known else ""
    return Finding(
        "dead_leases",
        called,
        f"All {sum(dead.values())} groups in hand are leased by nodes that are gone: {called}{silent}.",
        "It died or lost its connection with groups in its hands.",
        f"Nothing: they are free for others {snapshot.lease_seconds:.0f} s after their last renewal"
        " (queue.lease_seconds).",
        name,
    )


def _fetch_stuck(snapshot: Snapshot, workers: Sequence[Node], late: Late) -> Finding | None:
    waiting = [
        node
        for node in workers
        if node.state in _WAITS_FOR_WEIGHTS
        and node.policy_version < snapshot.policy_version
        and node.version_seconds >= _SEEN_STILL_SECONDS
    ]
    busy = [node for node in workers if node not in waiting and node.state == "generating"]
    if not waiting or busy:
        return None
    worst = max(waiting, key=lambda node: node.version_seconds)
    if worst.policy_version < 0:
        seen = f"{worst.called} has no weights yet, and waits for version {snapshot.policy_version}"
    else:
        seen = f"{worst.called} still holds version {worst.policy_version} and waits for {snapshot.policy_version}"
    return Finding(
        "fetch_stuck",
        worst.called,
        f"{seen}, for {worst.version_seconds:.0f} s by now.",
        worst.last_error or "The link to the trainer is slow or broken, or it loads a model.",
        "Mend the link to the trainer's port; the fetch goes on where it stopped. See the worker's log.",
        worst.node_id,
    )


def _not_leasing(snapshot: Snapshot, stream: Stream, held_out: Stream, workers: Sequence[Node]) -> Finding | None:
    if not stream.waiting or stream.leased:
        return None
    if held_out.leased and any(node.state == "generating" for node in workers):
        return Finding(
            "evaluation_holds",
            "evaluation",
            f"The workers generate held-out prompts while {stream.waiting} training groups wait.",
            "An evaluation in hand has to be finished first by the weights that it is pinned to.",
            "Nothing, if it goes on; fewer evaluation.prompts or more workers make it shorter.",
        )
    worst = max(workers, key=lambda node: (bool(node.last_error), node.still_seconds))
    return Finding(
        "not_leasing",
        worst.called,
        f"{stream.waiting} groups wait and no worker takes one; {worst.called} is"
        f" {f'{worst.state} {worst.detail}'.strip() or 'silent about what it does'}.",
        worst.last_error or _why_not(worst, snapshot),
        "See the worker's log; restart it if it says nothing.",
        worst.node_id,
    )


def _why_not(node: Node, snapshot: Snapshot) -> str:
    if node.state == "starting":
        return "It is still loading the model or waits for weights."
    if snapshot.policy_version - node.policy_version > snapshot.max_staleness:
        return f"It holds version {node.policy_version}, too old to take groups for (newest {snapshot.policy_version})."
    return "It lives, but does not ask the queue for work."


def _stuck(stream: Stream, workers: Sequence[Node], late: Late) -> Finding | None:
    holding = [node for node in workers if stream.holders.get(node.node_id, node.leases)]
    stuck = [node for node in holding if node.still_seconds >= late.still_seconds]
    if not stuck or (not late.quiet and len(stuck) < len(holding)):
        return None
    worst = max(stuck, key=lambda node: node.still_seconds)
    others = f" ({len(stuck)} workers alike)" if len(stuck) > 1 else ""
    held, doing = stream.holders.get(worst.node_id, worst.leases), f"{worst.state} {worst.detail}".strip()
    return Finding(
        "worker_stuck",
        worst.called,
        f"{worst.called} lives and holds {held} groups, but has finished nothing for {worst.still_seconds:.0f} s;"
        f" it is {doing or 'silent'}{others}.",
        worst.last_error or "Its engine hangs, or its machine is busy with something else or swaps memory.",
        "See its log; end it and start it again: its groups go to another worker.",
        worst.node_id,
    )


def _slow(snapshot: Snapshot, stream: Stream, held_out: Stream, workers: Sequence[Node], late: Late) -> Finding:
    gone = [node for node in snapshot.lost("rollout") if node.silent_seconds < 600]
    if gone:
        cause = f"{gone[0].called} is gone since {gone[0].silent_seconds:.0f} s; {len(workers)} are left."
    else:
        cause = "Completions are longer than before, or the workers' machines are busy with something else."
    busiest = max(workers, key=lambda node: stream.holders.get(node.node_id, node.leases))
    goes_on = f"the last that came back did so {late.seconds:.0f} s ago" if late.quiet else "some come back"
    return Finding(
        "generation_slow",
        gone[0].called if gone else busiest.called,
        f"{stream.entries + held_out.entries} groups are with {len(workers)} workers, and {goes_on}; after"
        f" {late.seconds:.0f} s that is later than ever ({late.limit_seconds:.0f} s allowed).",
        cause,
        "Start another worker, or see what else runs on their machines.",
        gone[0].node_id if gone else "",
    )


def _joined(one: Stream, other: Stream) -> Stream:
    holders = dict(one.holders)
    for name, count in other.holders.items():
        holders[name] = holders.get(name, 0) + count
    return Stream(one.waiting + other.waiting, one.leased + other.leased, holders)
