"""The users of a run's nodes: made at join, made again if the server loses them, removed on revoke."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import redis
import structlog

from tersely.errors import IdentityInvalid
from tersely.queue.acl import NodeLogin, add_node, nodes_of, remove_node, user_of
from tersely.queue.connect import address_of, redis_errors
from tersely.queue.tls import OwnTlsConnection
from tersely.types import RunId

log = structlog.get_logger(__name__)


def revoked_nodes() -> frozenset[str]:
    """Names of the nodes that this machine's authority has revoked; none without an authority.

    Raises:
        IdentityInvalid: Its list is damaged.
    """
    from tersely.identity.folder import read_state
    from tersely.identity.node import authority_folder

    found = read_state(authority_folder() / "nodes.json")
    return frozenset(name for name, node in found.items() if node.get("revoked") is not None)


class NodeLogins:
    """Users of one run's nodes. Thread-safe.

    Args:
        client: As a user with a password that may use ACL; nobody else blocks on it.
        run: The run.
        revoked: Who must have no user.
    """

    def __init__(self, client: redis.Redis, run: RunId, revoked: Callable[[], frozenset[str]] = revoked_nodes) -> None:
        self._client = client
        self._run = run
        self._revoked = revoked
        self._lock = threading.Lock()
        self._roles: dict[str, str] = {}
        self._gone: frozenset[str] = frozenset()
        self._certificate = _certificate_of(client)
        self._shown = _mark(self._certificate)

    def add(self, node: str, role: str) -> NodeLogin:
        """A node's login; see `add_node`.

        Raises:
            RedisAuth, RedisUnreachable.
        """
        with self._lock:
            login = add_node(self._client, self._run, node, role)
            self._roles[node] = role
        log.info("login_given", node=node, role=role, user=login.username)
        return login

    def look(self) -> None:
        """Puts right what has changed; to be called every second or so.

        Raises:
            RedisAuth, RedisUnreachable.
        """
        self._read_revoked()
        with self._lock:
            there = dict(nodes_of(self._client))
            for node in self._gone & set(there.values()):
                remove_node(self._client, node)
                log.warning("login_removed", node=node, reason="revoked")
            for node in self._gone & set(self._roles):
                del self._roles[node]
            for node, role in self._roles.items():
                if user_of(self._run, node) not in there:
                    add_node(self._client, self._run, node, role)
                    log.warning("login_restored", node=node, role=role, reason="the server had lost it")
            self._show_renewed()

    def _read_revoked(self) -> None:
        """What was revoked stays so, also while the list can't be read."""
        try:
            self._gone |= self._revoked()
        except IdentityInvalid as error:
            log.error("revocations_unreadable", message=error.message)

    def _show_renewed(self) -> None:
        """Lets the server read its certificate again once it was renewed."""
        mark = _mark(self._certificate)
        if self._certificate is None or mark == self._shown:
            return
        file = str(self._certificate)
        with redis_errors(address_of(self._client)):
            self._client.config_set("tls-cert-file", file, "tls-key-file", file)
        self._shown = mark
        log.info("queue_certificate_renewed", file=file)


def _certificate_of(client: redis.Redis) -> Path | None:
    """The file that the server shows, which is ours where we show it, too."""
    if not issubclass(client.connection_pool.connection_class, OwnTlsConnection):
        return None
    file = client.connection_pool.connection_kwargs["own_tls"].certificate_file
    return file if isinstance(file, Path) else None


def _mark(file: Path | None) -> tuple[int, int]:
    if file is None:
        return (0, 0)
    try:
        state = file.stat()
    except OSError:
        return (0, 0)
    return (state.st_mtime_ns, state.st_ino)
