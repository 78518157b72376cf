"""Connections to Redis or Valkey, and their failures in the words of `tersely.errors`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import redis
from redis import exceptions as faults
from redis.backoff import ExponentialWithJitterBackoff, NoBackoff
from redis.connection import parse_url
from redis.retry import Retry

from tersely.config.schema import QueueSection
from tersely.errors import (
    ConfigValue,
    PlaintextRefused,
    QueueError,
    RedisAuth,
    RedisOutOfMemory,
    RedisTls,
    RedisTooOld,
    RedisUnreachable,
)
from tersely.queue.tls import SERVER_ROLE, OwnTlsConnection, QueueTls, queue_tls
from tersely.rpc.address import Address

LEAST_VERSION = {"redis": (7, 0), "valkey": (7, 2)}
_RETRIES = 3
_TLS_FAILED = re.compile(r"CERTIFICATE_VERIFY_FAILED|_ALERT_|WRONG_VERSION_NUMBER")


def connect(
    url: str,
    *,
    username: str | None = None,
    password: str | None = None,
    timeout_seconds: float = 5.0,
    tls: QueueTls | None = None,
) -> redis.Redis:
    """A checked client with binary responses.

    A command whose connection breaks is sent again (3 times over a few seconds), so writes can happen twice. A server
    that is silent for `timeout_seconds` is given up at once.

    Args:
        url: `redis://`, `rediss://` or `unix://` URL, with or without credentials. `?authority=own` at the end of a
            `rediss://` URL asks for the TLS of this machine's own identity.
        username: Wins over the one in the URL.
        password: Wins over the one in the URL.
        timeout_seconds: Limit for connecting and for each reply; blocking reads must stay below it.
        tls: For a server with a certificate of our own authority; None: one whose host name a `rediss://` URL states
            and whose authority this machine trusts.

    Raises:
        ConfigValue, RedisUnreachable, RedisAuth, RedisTooOld, RedisTls.
    """
    try:
        options: dict[str, Any] = parse_url(url)  # type: ignore[no-untyped-call]
    except ValueError:
        # The parser's own words may quote a piece of the password.
        raise ConfigValue(
            "The Redis URL can't be read.", "Write it like redis://HOST:6379, rediss://HOST:6379 or unix:///PATH."
        ) from None
    if options.pop("authority", None) == "own" and tls is None:
        tls = queue_tls(None)
    if tls is not None:
        if urlsplit(url).scheme != "rediss":
            raise ConfigValue(f"{without_password(url)} is not encrypted.", "Write it like rediss://HOST:6379.")
        options |= {"connection_class": OwnTlsConnection, "own_tls": tls}
    if username is not None:
        options["username"] = username
    if password is not None:
        options["password"] = password
    options |= {
        "protocol": 2,
        "socket_timeout": timeout_seconds,
        "socket_connect_timeout": timeout_seconds,
        "health_check_interval": 30,
    }
    # The first contact fails at once: whoever waits for a server asks again.
    with redis.Redis.from_pool(redis.ConnectionPool(**options, retry=Retry(NoBackoff(), 0))) as probe:
        _check(probe)
    backoff = ExponentialWithJitterBackoff(base=0.1, cap=1.0)
    retry = Retry(backoff, _RETRIES, supported_errors=(faults.ConnectionError,))
    return redis.Redis.from_pool(redis.ConnectionPool(**options, retry=retry))


def password_from(queue: QueueSection, environ: Mapping[str, str]) -> str | None:
    """The password in the environment variable that the recipe names, if it is set and not empty."""
    return environ.get(queue.password_env) or None


def open_queue(queue: QueueSection, url: str, environ: Mapping[str, str]) -> redis.Redis:
    """Connects as the recipe's user, on the machine that has the server or its trainer.

    Args:
        queue: The recipe's section.
        url: Of the server; 0.0.0.0 and :: in it are this machine.
        environ: Where the password is.

    Raises:
        ConfigValue, RedisUnreachable, RedisAuth, RedisTooOld, RedisTls.
        IdentityMissing, IdentityInvalid: The server wants a certificate, and this machine has none for a trainer.
    """
    tls = queue_tls(SERVER_ROLE) if queue.authority == "own" else None
    here = "::1" if "//[::]" in url else "127.0.0.1"
    return connect(seen_from(url, here), username=queue.username, password=password_from(queue, environ), tls=tls)


def refuse_plaintext(url: str, *, allowed: bool) -> None:
    """Refuses a server on the network that is not encrypted: the password would be readable on its way.

    Args:
        url: Of the server.
        allowed: Whether plaintext was allowed by name (rpc.insecure_lan).

    Raises:
        PlaintextRefused.
    """
    parts = urlsplit(url)
    if allowed or parts.scheme != "redis" or Address(parts.hostname or "localhost", 0).loopback:
        return
    raise PlaintextRefused(
        f"The queues at {without_password(url)} would be read and written unencrypted over the network.",
        "Use a server with TLS (rediss://; `tersely up` starts one with queue.host), or set rpc.insecure_lan = true"
        " on a network where you trust every machine.",
    )


def without_password(url: str) -> str:
    """The URL without any password, safe to show and to hand on; the user name stays."""
    parts = urlsplit(url)
    userinfo, at, host = parts.netloc.rpartition("@")
    username = userinfo.partition(":")[0]
    query = urlencode([(name, value) for name, value in parse_qsl(parts.query) if name != "password"])
    shown = parts._replace(netloc=f"{username}@{host}" if at and username else host, query=query)
    # urlunsplit drops the slashes of an empty host.
    return f"{shown.scheme}://{shown.netloc}{urlunsplit(shown._replace(scheme='', netloc=''))}"


def seen_from(url: str, trainer_host: str) -> str:
    """The URL for a node that reaches the trainer's machine as `trainer_host`.

    0.0.0.0 and :: in it stand for every address of that machine: laptops change theirs, and none is right for all.
    """
    parts = urlsplit(url)
    if parts.hostname not in ("0.0.0.0", "::"):
        return url
    userinfo, at, _ = parts.netloc.rpartition("@")
    host = f"[{trainer_host}]" if ":" in trainer_host else trainer_host
    port = "" if parts.port is None else f":{parts.port}"
    return urlunsplit(parts._replace(netloc=f"{userinfo}{at}{host}{port}"))


def address_of(client: redis.Redis) -> str:
    """Where a client connects to, for people: "127.0.0.1:6379" or a socket's path; never credentials."""
    kwargs = client.connection_pool.connection_kwargs
    if "path" in kwargs:
        return str(kwargs["path"])
    return f"{kwargs.get('host', 'localhost')}:{kwargs.get('port', 6379)}"


@contextmanager
def redis_errors(address: str = "the configured address") -> Iterator[None]:
    """Turns what redis-py raises inside the block into errors of ours.

    Args:
        address: Server, for the message.

    Raises:
        RedisAuth, RedisOutOfMemory, RedisUnreachable, RedisTls, QueueError.
    """
    try:
        yield
    except (faults.RedisError, OSError) as error:
        raise _translate(error, address) from None


def _translate(error: Exception, address: str) -> QueueError:
    if isinstance(error, faults.NoPermissionError):
        return RedisAuth(
            f"Redis at {address} does not let this user do that: {server_words(error)}.",
            "Give the user the permissions of its role, or name another in queue.username.",
        )
    if isinstance(error, faults.AuthenticationError | faults.AuthorizationError):
        refused = RedisAuth(
            f"Redis at {address} refused the login: {server_words(error)}.",
            "Put the right password into the variable that queue.password_env names (TERSELY_REDIS_PASSWORD).",
        )
        refused.of_login = True
        return refused
    if isinstance(error, faults.OutOfMemoryError):
        return RedisOutOfMemory(
            f"Redis at {address} is at its maxmemory and takes no more work.",
            "Raise maxmemory (CONFIG SET maxmemory), or free what else lies in that server; nothing was lost.",
        )
    if isinstance(error, faults.ConnectionError | OSError) and _TLS_FAILED.search(str(error)):
        return RedisTls(
            f"No encrypted connection to Redis at {address}: {server_words(error)}.",
            "Both sides need valid certificates of one authority; see docs/errors/redis_tls.md.",
        )
    if isinstance(error, faults.ConnectionError | faults.TimeoutError | OSError):
        return RedisUnreachable(
            f"Redis at {address} does not answer: {server_words(error)}.",
            "Start it, or mend queue.url; leave queue.url out to use the embedded server on this machine.",
        )
    return QueueError(f"Redis at {address} refused a command: {server_words(error)}.", "Look into the server's log.")


def server_words(error: Exception) -> str:
    """What the server said, without what it was told: e.g. "NOGROUP No such key ...".

    redis-py puts the command before an error in a pipeline, and some servers echo arguments; payloads and passwords are
    among them.
    """
    text = str(error).rpartition(" of pipeline caused error: ")[2].partition(", with args")[0].strip()
    return text.rstrip(".") or type(error).__name__


def _check(client: redis.Redis) -> None:
    address = address_of(client)
    with redis_errors(address):
        try:
            client.ping()
            answer: Any = client.execute_command("HELLO")  # type: ignore[no-untyped-call]
        except faults.ResponseError as error:
            if "unknown command" not in str(error).lower():
                raise
            raise _too_old(address, "older than 6.0") from None
    fields = dict(zip(answer[::2], answer[1::2], strict=True))
    check_version(fields[b"server"].decode(), fields[b"version"].decode(), address)


def check_version(server: str, version: str, address: str) -> None:
    """Refuses servers that lack what the streams need.

    Args:
        server: "redis" or "valkey"; unknown names count as redis.
        version: Like "7.0.15".
        address: For the message.

    Raises:
        RedisTooOld.
    """
    try:
        major_minor = tuple(int(part) for part in version.split(".")[:2])
    except ValueError:
        return
    if major_minor < LEAST_VERSION.get(server, LEAST_VERSION["redis"]):
        raise _too_old(address, f"{server} {version}")


def _too_old(address: str, what: str) -> RedisTooOld:
    return RedisTooOld(
        f"The server at {address} is {what}; Redis 7.0 or Valkey 7.2 is needed.",
        "Upgrade it, or leave queue.url out to use the embedded server.",
    )
