"""Roles by name."""

from __future__ import annotations

from tersely.v1 import node_pb2

ROLES = ("trainer", "rollout", "scorer", "judge")
"""Every role, as in heartbeats, node ids and the command line."""

_PREFIX = "NODE_ROLE_"


def role_to_proto(role: str) -> node_pb2.NodeRole.ValueType:
    """The enum value of a role such as "rollout".

    Raises:
        ValueError: There is no such role.
    """
    if role not in ROLES:
        raise ValueError(f"unknown role {role!r}")
    return node_pb2.NodeRole.Value(_PREFIX + role.upper())


def role_name(role: node_pb2.NodeRole.ValueType) -> str:
    """A role such as "rollout" from its enum value; "unspecified" for 0 and values of a newer version."""
    try:
        return node_pb2.NodeRole.Name(role).removeprefix(_PREFIX).lower()
    except ValueError:
        return "unspecified"
