"""Heartbeats as status.json shows them."""

from __future__ import annotations

import time
from typing import Any

from tersely.v1 import node_pb2


def node_facts(node: node_pb2.Heartbeat) -> dict[str, Any]:
    """One node for people and programs."""
    return {
        "node_id": node.node_id,
        "role": node_pb2.NodeRole.Name(node.role).removeprefix("NODE_ROLE_").lower(),
        "pid": node.pid,
        "host": node.host,
        "state": node.state,
        "detail": node.detail,
        "policy_version": node.policy_version,
        "tokens_per_second": round(node.tokens_per_second, 2),
        "groups_finished": node.groups_finished,
        "leases": node.leases,
        "last_error": node.last_error,
        "delta_fallbacks": node.delta_fallbacks,
        "engine": node.engine,
        "swap_pause_seconds": round(node.swap_pause_seconds, 4),
        "heartbeat": node.time,
        "age_seconds": round(time.time() - node.time, 2),
    }
