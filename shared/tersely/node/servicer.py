"""NodeService: what the trainer tells those who join."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import grpc
import structlog

from tersely.errors import AccessDenied, ConfigValue
from tersely.node.roles import ROLES, role_name
from tersely.queue.acl import NodeLogin, process_id
from tersely.rpc.errors import errors_as_status
from tersely.types import NodeId
from tersely.v1 import node_pb2, node_pb2_grpc

if TYPE_CHECKING:
    from tersely.identity.certificates import NodeCertificate

LoginFor = Callable[[str, str], NodeLogin]
"""Gives a node, by name and role, its user of the Redis server."""
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
        login_for: Called for nodes that show a certificate; None: they use the recipe's user.
        redis_own_tls: Whether the Redis server takes certificates of our authority.
    """

    def __init__(
        self,
        run_id: str,
        recipe_json: str,
        redis_url: str,
        incarnation: int,
        *,
        login_for: LoginFor | None = None,
        redis_own_tls: bool = False,
    ) -> None:
        self._run_id = run_id
        self._recipe_json = recipe_json
        self._redis_url = redis_url
        self._incarnation = incarnation
        self._login_for = login_for
        self._redis_own_tls = redis_own_tls

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
            peer = _peer(context)
            login = None
            if peer is None:
                node_id = make_node_id(role, request.host, request.pid)
            else:
                if role != peer.role:
                    raise AccessDenied(
                        f"{peer.name} has a certificate for the role {peer.role} and asks to be a {role}.",
                        f"Join as one, with a token for it: tersely token create --role {role}.",
                    )
                node_id = process_id(peer.name, request.pid, secrets.token_hex(2))
                if self._login_for is not None:
                    login = await asyncio.to_thread(self._login_for, peer.name, role)
            _log.info("node_joined", node_id=node_id)
        return node_pb2.JoinResponse(
            redis_username="" if login is None else login.username,
            redis_password="" if login is None else login.password,
            redis_own_tls=self._redis_own_tls,
            run_id=self._run_id,
            node_id=node_id,
            redis_url=self._redis_url,
            config_json=self._recipe_json,
            trainer_incarnation=self._incarnation,
        )


def _peer(context: grpc.aio.ServicerContext[Any, Any]) -> NodeCertificate | None:
    """Who calls, where TLS was used."""
    if not context.auth_context().get("x509_pem_cert"):
        return None
    from tersely.rpc.guard import peer_of

    return peer_of(context)
