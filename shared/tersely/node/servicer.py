"""NodeService: what the trainer tells those who join."""

from __future__ import annotations

import re
import secrets
from typing import Any

import grpc
import structlog

from tersely.errors import ConfigValue
from tersely.node.roles import ROLES, role_name
from tersely.rpc.errors import errors_as_status
from tersely.types import NodeId
from tersely.v1 import node_pb2, node_pb2_grpc

_log = structlog.get_logger(__name__)


def make_node_id(role: str, host: str, pid: int) -> NodeId:
    """A new id like "rollout-mini2-4711-a1b2"; what is not a letter, digit, dot or dash in the host becomes a dash."""
    name = re.sub(r"[^A-Za-z0-9.-]+", "-", host)[:63].strip("-") or "host"
    return NodeId(f"{role}-{name}-{pid}-{secrets.token_hex(2)}")


class NodeServicer(node_pb2_grpc.NodeServiceServicer):
    """Lets nodes into a run; for `GrpcServer` only (grpc.aio).

    Args:
        run_id: The run.
        recipe_json: Resolved recipe as JSON.
        redis_url: Redis URL without a password.
        incarnation: Incarnation of the trainer.
    """

    def __init__(self, run_id: str, recipe_json: str, redis_url: str, incarnation: int) -> None:
        self._run_id = run_id
        self._recipe_json = recipe_json
        self._redis_url = redis_url
        self._incarnation = incarnation

    def register(self, server: grpc.aio.Server) -> None:
        """Adds itself to a server: ``server.add(servicer.register)``."""
        node_pb2_grpc.add_NodeServiceServicer_to_server(self, server)

    async def Join(  # noqa: N802 - gRPC's name
        self, request: node_pb2.JoinRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> node_pb2.JoinResponse:
        """Gives a node its id and all it needs to begin."""
        async with errors_as_status(context):
            role = role_name(request.role)
            if role not in ROLES:
                raise ConfigValue(
                    "The node did not say what it does.", "Run the same version of tersely on all machines."
                )
            node_id = make_node_id(role, request.host, request.pid)
            _log.info("node_joined", node_id=node_id)
        return node_pb2.JoinResponse(
            run_id=self._run_id,
            node_id=node_id,
            redis_url=self._redis_url,
            config_json=self._recipe_json,
            trainer_incarnation=self._incarnation,
        )
