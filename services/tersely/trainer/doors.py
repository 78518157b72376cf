"""Who gets into the trainer's run, and how those put out lose what they had."""

from __future__ import annotations

from contextlib import ExitStack

import redis
import structlog

from tersely.config import Recipe
from tersely.node.servicer import NodeServicer
from tersely.queue.logins import NodeLogins
from tersely.rpc.server import GrpcServer
from tersely.types import RunId

log = structlog.get_logger(__name__)


class Doors:
    """Without TLS nodes are let in as they come. With it they have joined before, and get a Redis user of their own.

    Args:
        server: The trainer's, before it starts.
        recipe: Of the run.
        run_id: The run.
        client: Of a Redis user that may make users, where the server has a password.
    """

    def __init__(self, server: GrpcServer, recipe: Recipe, run_id: RunId, client: redis.Redis) -> None:
        self._server = server
        self._run_id = run_id
        self._settings = client.connection_pool.connection_kwargs
        self._logins: NodeLogins | None = None
        self._gate = None
        if server.secured:
            from tersely.identity.gate import Gate

            if self._settings.get("password"):
                self._logins = NodeLogins(client, run_id)
            else:
                log.warning(
                    "queue_without_password", what="whoever reaches the Redis server can read and write the run"
                )
            look = None if self._logins is None else self._logins.look
            self._gate = Gate.beside(server, recipe.rpc.host, recipe.rpc.join_port, look)

    def nodes(self, redis_url: str, recipe_json: str, incarnation: int) -> NodeServicer:
        """What answers nodes that want to take part.

        Args:
            redis_url: Redis URL without a password.
            recipe_json: Resolved recipe.
            incarnation: Of the trainer.
        """
        return NodeServicer(
            self._run_id,
            recipe_json,
            redis_url,
            incarnation,
            login_for=None if self._logins is None else self._logins.add,
            redis_own_tls="own_tls" in self._settings,
        )

    def open(self, stack: ExitStack) -> dict[str, str]:
        """Lets machines join, once the server has started; `stack` ends it.

        Returns:
            What run.json says of it.

        Raises:
            PortBusy: The port for joining is taken.
        """
        if self._gate is None:
            return {}
        stack.callback(self._gate.close)
        address = self._gate.open(self._server.port)
        log.info("open for joining", address=address)
        return {"join_address": address}
