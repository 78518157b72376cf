"""Stalls between generation and reward."""

from __future__ import annotations

from tersely.trainer.watchdog.finding import Finding
from tersely.trainer.watchdog.limits import Late
from tersely.trainer.watchdog.snapshot import Node, Snapshot, Stream
from tersely.trainer.watchdog.workers import dead_leases


def scorers_hold(snapshot: Snapshot, late: Late) -> Finding | None:
    """Generated groups are there, and no scored ones come of them."""
    stream, scorers = snapshot.stream("completions"), snapshot.living("scorer")
    if stream.entries == 0 or not scorers:
        return None
    if not _is_its_turn(snapshot, stream):
        return None
    found = dead_leases(snapshot, stream, scorers, "scorer")
    if found is not None:
        return found
    stuck = [node for node in scorers if node.still_seconds >= late.still_seconds]
    if len(stuck) == len(scorers) or any(stream.holders.get(node.node_id) for node in stuck):
        worst = max(stuck, key=lambda node: (stream.holders.get(node.node_id, 0), node.still_seconds))
        return _stuck(worst, stream, snapshot.judged)
    if stream.waiting >= 2:
        return Finding(
            "scorer_behind",
            scorers[0].called,
            f"{stream.waiting} generated groups wait for {_count(scorers)}, and more come than are scored.",
            "A reward takes long: the judge, an embedding model on a busy machine, or very long texts.",
            "Start another scorer (`tersely scorer --trainer HOST:PORT`, or scorer.workers), or take a cheaper reward.",
            scorers[0].node_id if len(scorers) == 1 else "",
        )
    return None


def _is_its_turn(snapshot: Snapshot, stream: Stream) -> bool:
    """Whether what is with the scorers is what is waited for, rather than a group that just came."""
    prompts = snapshot.stream("prompts").entries + snapshot.stream("eval_prompts").entries
    if prompts == 0 or stream.waiting >= 2:
        return True
    scorers = snapshot.living("scorer")
    return any(stream.holders.get(node.node_id) and node.still_seconds > 5 for node in scorers) or stream.waiting > 0


def _stuck(node: Node, stream: Stream, judged: bool) -> Finding:
    held = stream.holders.get(node.node_id, 0)
    doing = f"{node.state} {node.detail}".strip() or "at something"
    if "circuit_open" in f"{node.detail} {node.last_error}":
        return Finding(
            "judge_breaker_open",
            "judge",
            f"{node.called} waits for the judge: {node.detail or node.last_error}",
            "The judge's endpoint failed too often and is left alone for a while.",
            "See the judge's log and its endpoint; it is asked again by itself once it answers.",
            node.node_id,
        )
    return Finding(
        "scorer_stuck",
        node.called,
        f"{node.called} lives but has finished nothing for {node.still_seconds:.0f} s; it is {doing},"
        f" holds {held} groups, and {stream.waiting} wait.",
        node.last_error
        or (
            "It waits for the judge, most likely."
            if judged
            else "A reward does not come back from a text, or from who it asks."
        ),
        "See its log; end it (its groups go to another one), and if a judge scores, see the judge's log.",
        node.node_id,
    )


def _count(nodes: tuple[Node, ...]) -> str:
    return nodes[0].called if len(nodes) == 1 else f"{len(nodes)} scorers"
