"""Signs of life: a key per node that expires, and a hash of all nodes."""

from __future__ import annotations

import os
import platform
import threading
import time
from types import TracebackType
from typing import Any, Self, cast

import redis
import structlog
from google.protobuf.message import DecodeError

from tersely.node.roles import role_to_proto
from tersely.queue.keys import RunKeys
from tersely.types import NodeId
from tersely.v1 import node_pb2

EVERY_SECONDS = 2.0
LIVES_SECONDS = 10
_log = structlog.get_logger(__name__)


class Heartbeater:
    """Writes the node's heartbeat every two seconds from a thread; goes on trying while Redis is away.

    Args:
        client: Redis client with binary responses; may be shared.
        keys: Keys of the run.
        node_id: This node.
        role: What it does, one of `tersely.node.roles.ROLES`.
        every_seconds: Time between heartbeats; they live for 10 s.
    """

    def __init__(
        self, client: redis.Redis, keys: RunKeys, node_id: NodeId, role: str, every_seconds: float = EVERY_SECONDS
    ) -> None:
        self._client = client
        self._keys = keys
        self._node_id = node_id
        self._every_seconds = every_seconds
        self._lock = threading.Lock()
        self._beat = node_pb2.Heartbeat(
            node_id=node_id,
            role=role_to_proto(role),
            host=platform.node(),
            pid=os.getpid(),
            started=time.time(),
            state="starting",
            policy_version=-1,
        )
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.missed = 0

    def start(self) -> Self:
        """Writes the first heartbeat and starts the thread."""
        self._write_or_count()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()
        return self

    def update(
        self,
        *,
        state: str | None = None,
        detail: str | None = None,
        policy_version: int | None = None,
        tokens_per_second: float | None = None,
        groups_finished: int | None = None,
        leases: int | None = None,
        last_error: str | None = None,
        delta_fallbacks: int | None = None,
        engine: str | None = None,
        swap_pause_seconds: float | None = None,
    ) -> None:
        """Changes what the next heartbeat says; what is None stays. Cheap, does no I/O."""
        given = {
            "state": state,
            "detail": detail,
            "policy_version": policy_version,
            "tokens_per_second": tokens_per_second,
            "groups_finished": groups_finished,
            "leases": leases,
            "last_error": last_error,
            "delta_fallbacks": delta_fallbacks,
            "engine": engine,
            "swap_pause_seconds": swap_pause_seconds,
        }
        with self._lock:
            for name, value in given.items():
                if value is not None:
                    setattr(self._beat, name, value)

    def beat(self) -> None:
        """Writes a heartbeat now.

        Raises:
            redis.RedisError: Redis did not take it.
        """
        with self._lock:
            self._beat.time = time.time()
            data = self._beat.SerializeToString()
        with self._client.pipeline(transaction=True) as pipe:
            pipe.set(self._keys.node(self._node_id), data, ex=LIVES_SECONDS)
            pipe.hset(self._keys.nodes, self._node_id, data)
            pipe.execute()

    def leave(self) -> None:
        """Stops the thread and removes the node; a Redis that is away is left to forget it by itself."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        try:
            with self._client.pipeline(transaction=True) as pipe:
                pipe.delete(self._keys.node(self._node_id))
                pipe.hdel(self._keys.nodes, self._node_id)
                pipe.execute()
        except (redis.RedisError, OSError) as error:
            _log.info("leave_not_written", error=str(error))

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.leave()

    def _run(self) -> None:
        while not self._stop.wait(self._every_seconds):
            self._write_or_count()

    def _write_or_count(self) -> None:
        try:
            self.beat()
        except (redis.RedisError, OSError) as error:
            if self.missed == 0:
                _log.warning("heartbeat_missed", error=str(error))
            self.missed += 1
            return
        if self.missed:
            _log.info("heartbeat_back", missed=self.missed)
        self.missed = 0


def read_nodes(client: redis.Redis, keys: RunKeys) -> list[node_pb2.Heartbeat]:
    """Last heartbeat of each node that lives, by node id; the dead are removed from the hash.

    Raises:
        redis.RedisError: Redis did not answer; wrap in `redis_errors()` where that is for the user to see.
    """
    names = sorted(cast(dict[bytes, Any], client.hgetall(keys.nodes)))
    if not names:
        return []
    values = cast(list[bytes | None], client.mget([keys.node(NodeId(name.decode(errors="replace"))) for name in names]))
    beats, dead = [], []
    for name, value in zip(names, values, strict=True):
        beat = _parse(value)
        if beat is None:
            dead.append(name)
        else:
            beats.append(beat)
    if dead:
        client.hdel(keys.nodes, *dead)
    return beats


def _parse(value: bytes | None) -> node_pb2.Heartbeat | None:
    if value is None:
        return None
    try:
        return node_pb2.Heartbeat.FromString(value)
    except DecodeError:
        return None
