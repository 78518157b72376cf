"""Which nodes there are and were, and for how long each has been as it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tersely.trainer.watchdog.snapshot import Node

KEPT_GONE = 32


@dataclass(slots=True)
class _Known:
    facts: Mapping[str, Any]
    beat: float
    heard: float
    moved: float
    took_weights: float
    erred: float | None
    began: float


class People:
    """Compares heartbeats with earlier ones, by this machine's clock alone: those of nodes may be wrong."""

    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}
        self._present: set[str] = set()

    def heard(self, nodes: Iterable[Mapping[str, Any]], now: float) -> None:
        """Takes the heartbeats that Redis has at a moment.

        Args:
            nodes: As in status.json.
            now: By the awake clock.
        """
        self._present = set()
        for facts in nodes:
            node_id = str(facts.get("node_id"))
            self._present.add(node_id)
            beat = float(facts.get("heartbeat", 0.0))
            known = self._known.get(node_id)
            if known is None:
                erred = now if facts.get("last_error") else None
                self._known[node_id] = _Known(facts, beat, now, now, now, erred, now)
                continue
            before, known.facts = known.facts, facts
            if beat != known.beat:
                known.beat, known.heard = beat, now
            if _differs(before, facts, "groups_finished", "policy_version"):
                known.moved = now
            if _begins(before, facts):
                known.began = now
            if _differs(before, facts, "policy_version"):
                known.took_weights = now
            if _differs(before, facts, "last_error"):
                known.erred = now if facts.get("last_error") else None
        for node_id in sorted(self._known.keys() - self._present, key=lambda name: self._known[name].heard)[
            :-KEPT_GONE
        ]:
            del self._known[node_id]

    def now(self, now: float) -> tuple[tuple[Node, ...], tuple[Node, ...]]:
        """Nodes that Redis knows of, and those that it no longer does, newest first."""
        nodes = {node_id: _node(node_id, known, now) for node_id, known in self._known.items()}
        gone = [node for node_id, node in nodes.items() if node_id not in self._present]
        here = [node for node_id, node in nodes.items() if node_id in self._present]
        return tuple(here), tuple(sorted(gone, key=lambda node: node.silent_seconds))


def _differs(before: Mapping[str, Any], after: Mapping[str, Any], *keys: str) -> bool:
    return any(before.get(key) != after.get(key) for key in keys)


def _begins(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether a node that had nothing in its hands has something now."""
    if not before.get("leases") and after.get("leases"):
        return True
    return before.get("state") == "waiting" and after.get("state") != "waiting"


def _node(node_id: str, known: _Known, now: float) -> Node:
    facts = known.facts
    return Node(
        node_id=node_id,
        role=str(facts.get("role", "")),
        host=str(facts.get("host", "")),
        state=str(facts.get("state", "")),
        detail=str(facts.get("detail", "")),
        policy_version=int(facts.get("policy_version", -1)),
        leases=int(facts.get("leases", 0)),
        last_error=str(facts.get("last_error", "")),
        silent_seconds=now - known.heard,
        # A worker that had nothing in its hands did not stand still.
        still_seconds=now - max(known.moved, known.began),
        version_seconds=now - known.took_weights,
        error_seconds=None if known.erred is None else now - known.erred,
    )
