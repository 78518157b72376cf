"""Getting into a run: the trainer's address is all a node needs."""

from __future__ import annotations

import os
import platform
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import grpc
import redis
import structlog
from pydantic import ValidationError

from tersely.config.load import recipe_from_json
from tersely.config.schema import Recipe
from tersely.errors import ConfigValue, RedisAuth, RedisUnreachable, TrainerUnreachable
from tersely.node.roles import role_to_proto
from tersely.queue.acl import NodeLogin
from tersely.queue.connect import connect, password_from, seen_from
from tersely.rpc.address import parse_address
from tersely.rpc.client import call, dial, uses_tls
from tersely.types import NodeId, RunId
from tersely.v1 import node_pb2, node_pb2_grpc

if TYPE_CHECKING:
    from tersely.identity.renewal import Renewal

_ATTEMPT_SECONDS = 2.0
_LOG_EVERY_SECONDS = 5.0
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Joined:
    """A node's place in a run; closing it closes the channel to the trainer.

    Attributes:
        run_id: The run.
        node_id: Id given to this node; its consumer name in the streams.
        recipe: Resolved recipe of the run.
        redis_url: Redis URL without a password.
        incarnation: Incarnation of the trainer that answered.
        address: Address of the trainer.
        channel: Open channel to the trainer.
        role: What the node does.
        login: This node's own user of the Redis server, given over TLS; None: the recipe's.
        own_tls: Whether the Redis server takes certificates of the trainer's authority.
        renewal: Keeps the node's certificate valid; None without TLS.
    """

    run_id: RunId
    node_id: NodeId
    recipe: Recipe
    redis_url: str
    incarnation: int
    address: str
    channel: grpc.Channel
    role: str = ""
    login: NodeLogin | None = None
    own_tls: bool = False
    renewal: Renewal | None = None

    def connect_redis(self, environ: Mapping[str, str] | None = None) -> redis.Redis:
        """Connects to the run's queues: as the user that the trainer made for this node, or else as the recipe's.

        The password of the recipe's user comes from this node's own environment.

        Raises:
            RedisUnreachable, RedisAuth, RedisTooOld, RedisTls.
        """
        tls: dict[str, Any] = {}
        if self.own_tls:
            from tersely.queue.tls import queue_tls

            tls = {"tls": queue_tls(self.role)}
        if self.login is not None:
            return connect(self.redis_url, username=self.login.username, password=self.login.password, **tls)
        queue = self.recipe.queue
        password = password_from(queue, os.environ if environ is None else environ)
        return connect(self.redis_url, username=queue.username, password=password, **tls)

    def close(self) -> None:
        """Closes the channel."""
        if self.renewal is not None:
            self.renewal.close()
        self.channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
        if self.login is not None and isinstance(value, RedisAuth) and value.of_login:
            raise RedisUnreachable(
                f"The Redis server no longer knows the user of this node: {value.message}",
                "Nothing to do: the node joins again, and gets its user back unless it was revoked.",
            ) from None


def join(address: str, role: str, wait_seconds: float = 120.0, stop: threading.Event | None = None) -> Joined:
    """Asks the trainer to be let in, and waits for one that is not up yet.

    Args:
        address: host:port of the trainer.
        role: What this node does, one of `tersely.node.roles.ROLES`.
        wait_seconds: Most seconds to wait for the trainer.
        stop: Set from outside to wait no longer.

    Returns:
        The node's place in the run, with an open channel.

    Raises:
        TrainerUnreachable: The trainer did not answer in time, or `stop` was set.
        ConfigValue: The address is not of the form host:port, or the trainer runs another version.
        IdentityMissing: TLS was asked for, and this machine has not joined as this role.
        AccessDenied, CertificateRefused: The trainer does not let it in.
    """
    request = node_pb2.JoinRequest(role=role_to_proto(role), host=platform.node(), pid=os.getpid())
    channel = dial(address, role=role)
    try:
        answer = _ask(channel, request, address, wait_seconds, stop)
        recipe = _read_recipe(answer.config_json)
    except BaseException:
        channel.close()
        raise
    run_id, node_id = RunId(answer.run_id), NodeId(answer.node_id)
    return Joined(
        run_id,
        node_id,
        recipe,
        seen_from(answer.redis_url, parse_address(address).host),
        answer.trainer_incarnation,
        address,
        channel,
        role,
        NodeLogin(answer.redis_username, answer.redis_password) if answer.redis_username else None,
        answer.redis_own_tls,
        _renewal(role, channel, address),
    )


def _renewal(role: str, channel: grpc.Channel, address: str) -> Renewal | None:
    if not uses_tls(parse_address(address)):
        return None
    from tersely.identity.renewal import Renewal

    return Renewal(role, channel, address).start()


def _read_recipe(text: str) -> Recipe:
    try:
        return recipe_from_json(text)
    except ValidationError:
        raise ConfigValue(
            "The trainer's recipe has settings that this node does not know.",
            "Run the same version of tersely on all machines.",
        ) from None


def _ask(
    channel: grpc.Channel,
    request: node_pb2.JoinRequest,
    address: str,
    wait_seconds: float,
    stop: threading.Event | None,
) -> node_pb2.JoinResponse:
    stub = node_pb2_grpc.NodeServiceStub(channel)
    started = time.monotonic()
    next_log = started + _LOG_EVERY_SECONDS / 2
    while True:
        left = started + wait_seconds - time.monotonic()
        try:
            return call(stub.Join, request, address=address, deadline_seconds=max(0.1, min(left, _ATTEMPT_SECONDS)))
        except TrainerUnreachable as error:
            now = time.monotonic()
            if stop is not None and stop.is_set():
                raise TrainerUnreachable(f"Stopped while waiting for the trainer at {address}.", "") from None
            if now - started >= wait_seconds:
                raise TrainerUnreachable(
                    f"No trainer answered at {address} within {wait_seconds:.0f} s ({error.message})",
                    "Check that the trainer runs, that this is the address it prints, and that no firewall is between.",
                ) from None
            if now >= next_log:
                _log.info("waiting_for_trainer", address=address, seconds=round(now - started))
                next_log = now + _LOG_EVERY_SECONDS
            # A refused call fails at once, not after its deadline: don't spin.
            (stop or threading.Event()).wait(0.2)
