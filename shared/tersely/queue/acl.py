"""One user of the Redis server per node, with the least rights that its role can work with.

    role      in a run, beside its own heartbeat
    rollout   takes from `prompts` and `eval_prompts`; adds to `completions` and `quarantine`
    scorer    takes from `completions`; adds to `scored` and `quarantine`
    judge     nothing more

    role      without a run: jobs of `tersely score` and `tersely judge-file`
    client    hands out jobs and takes their results
    scorer, judge
              work on jobs

To take is to lease, renew, acknowledge and delete entries. Redis tells keys apart, not entries: a node can end the
leases of others in the streams that its role takes from, but can't put anything there. No node can read or write
`rq:*` in a run, run scripts, list keys, or see what another sends.

A client can put any job into the queues of jobs. Workers run what is in their own table, whatever a job asks for.

A node's password is made from that of the user who adds it, so adding a node again, as after the server lost its
users, gives the same login; only its hash is in the server. Who adds nodes needs a password and the right to use ACL.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass, field

import redis
import structlog
from redis import exceptions as faults

from tersely.errors import RedisAuth
from tersely.queue.connect import address_of, redis_errors
from tersely.queue.keys import RunKeys
from tersely.types import NodeId, RunId

RUN_ROLES = ("rollout", "scorer", "judge")
JOB_ROLES = ("client", "scorer", "judge")
JOB_QUEUES = {"scorer": "score", "judge": "judge"}
"""Queue whose jobs a role works on."""
_PREFIX = "tersely"
_JOBS = "jobs"  # stands in a user's name for "no run"
_NODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,63}\Z")
_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z")
_BASE = (
    "reset",
    "-@all",
    "+auth",
    "+hello",
    "+ping",
    "+multi",
    "+exec",
    "+discard",
    "+unwatch",
    "+client|setname",
    "+client|info",
)
_TAKE = "+xreadgroup +xautoclaim +xclaim +xpending +xack +xdel +xlen +xgroup|create"
_LISTS = "+rpush +lpush +lrem +llen +lrange +lpos +lmove +blmove +blpop"
_SETS = "+sadd +srem +smembers +scard +sismember +zadd +zrem +zcard +zrange +zrangebyscore +zremrangebyscore +zscore"
_HASHES = "+hset +hsetnx +hget +hmget +hgetall +hdel +hexists +hincrby +hincrbyfloat"
_QUEUE_KINDS = ("queue", "workers", "wip", "finished", "failed", "deferred", "scheduled", "canceled")
_OTHERS = "+watch +del +exists +expire +persist +ttl +set +get +xadd +xrevrange +xlen"

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class NodeLogin:
    """What a node logs in with; the password is never shown.

    Attributes:
        username: User of the server.
        password: Its password.
    """

    username: str
    password: str = field(repr=False)


def add_node(connection: redis.Redis, run: RunId | None, node: str, role: str) -> NodeLogin:
    """Makes a node's user, or gives the one that is there its rights anew; connections of it go on.

    Args:
        connection: Of a user that may use ACL, with a password.
        run: Run that the node works in; None: jobs.
        node: Name of the node, as in its certificate. Its processes write heartbeats as `process_id` has it.
        role: One of RUN_ROLES, without a run one of JOB_ROLES.

    Raises:
        ValueError: Name, run or role can't be one.
        RedisAuth: The connection has no password, or may not use ACL.
        RedisUnreachable.
    """
    username = user_of(run, node)
    rights = rights_of(run, node, role)
    login = NodeLogin(username, _password(connection, username, role))
    digest = hashlib.sha256(login.password.encode()).hexdigest()
    words = ["ACL SETUSER", username, *rights, f"#{digest}", "on"]
    with redis_errors(address_of(connection)):
        try:
            connection.execute_command(*words, "+client|setinfo")  # type: ignore[no-untyped-call]
        except faults.ResponseError as error:
            if "setinfo" not in str(error):
                raise
            connection.execute_command(*words)  # type: ignore[no-untyped-call]  # Redis before 7.2 has none
    _save(connection)
    return login


def remove_node(connection: redis.Redis, node: str) -> int:
    """Removes a node's users in all runs; the server ends their connections at once.

    Returns:
        How many there were.

    Raises:
        RedisAuth, RedisUnreachable.
    """
    names = [username for username, found in nodes_of(connection) if found == node]
    if names:
        with redis_errors(address_of(connection)):
            connection.execute_command("ACL DELUSER", *names)  # type: ignore[no-untyped-call]
        _save(connection)
    return len(names)


def nodes_of(connection: redis.Redis) -> list[tuple[str, str]]:
    """User and node of each node that has one.

    Raises:
        RedisAuth, RedisUnreachable.
    """
    with redis_errors(address_of(connection)):
        users: list[bytes | str] = connection.execute_command("ACL USERS")  # type: ignore[no-untyped-call]
    names = [user.decode() if isinstance(user, bytes) else user for user in users]
    parts = [(name, name.split("+")) for name in names]
    return [(name, split[2]) for name, split in parts if len(split) == 3 and split[0] == _PREFIX]


def user_of(run: RunId | None, node: str) -> str:
    """Name of a node's user, e.g. "tersely+r-5f3a9c01+rollout-mini2-a1b2c3"; it can stand in a URL.

    Raises:
        ValueError: Names that could mean more than themselves in a key pattern.
    """
    if not _NODE.match(node):
        raise ValueError(f"{node!r} can't be the name of a node")
    if run is not None and (run == _JOBS or not _RUN.match(run)):
        raise ValueError(f"{run!r} can't be the id of a run")
    return f"{_PREFIX}+{_JOBS if run is None else run}+{node}"


def process_id(node: str, pid: int, suffix: str) -> NodeId:
    """Id of one process of a node: no other node's user can write its heartbeat, as no node's name has a "_"."""
    return NodeId(f"{node}_{pid}-{suffix}")


def rights_of(run: RunId | None, node: str, role: str) -> list[str]:
    """Rules for ACL SETUSER, without the password.

    Raises:
        ValueError: A role that gets no login of this kind.
    """
    if role not in (JOB_ROLES if run is None else RUN_ROLES):
        raise ValueError(f"no login for the role {role!r} {'without' if run is None else 'in'} a run")
    return [*_BASE, *(_job_rights(role) if run is None else _run_rights(RunKeys(run), node, role))]


def _run_rights(keys: RunKeys, node: str, role: str) -> list[str]:
    takes = {"rollout": [keys.prompts, keys.evaluation_prompts], "scorer": [keys.completions]}.get(role, [])
    adds = {"rollout": [keys.completions, keys.quarantine], "scorer": [keys.scored, keys.quarantine]}.get(role, [])
    rights = [f"(+set +del ~{keys.node(process_id(node, 0, '')).removesuffix('0-')}*)", f"(+hset +hdel ~{keys.nodes})"]
    if takes:
        rights.append(f"({_TAKE} {_patterns(takes)})")
    if adds:
        rights.append(f"(+xadd {_patterns(adds)})")
    return rights


def _job_rights(role: str) -> list[str]:
    queues = list(JOB_QUEUES.values()) if role == "client" else [JOB_QUEUES[role]]
    keys = [f"rq:{kind}:{queue}" for kind in _QUEUE_KINDS for queue in queues]
    keys += [f"rq:queue:{queue}:intermediate" for queue in queues]
    keys += ["rq:queues", "rq:job:*", "rq:executions:*", "rq:execution:*", "rq:results:*", "tj:*"]
    if role != "client":
        keys += ["rq:worker:*", "rq:workers", "rq:clean_registries:*"]
    # A client looks whether a worker is still there.
    workers = " %R~rq:worker:*" if role == "client" else ""
    # RQ asks for the version: on an old server it would take jobs in a way that loses them.
    return ["+info", f"({_LISTS} {_SETS} {_HASHES} {_OTHERS} {_patterns(keys)}{workers})"]


def _patterns(keys: list[str]) -> str:
    return " ".join(f"~{key}" for key in keys)


def _password(connection: redis.Redis, username: str, role: str) -> str:
    own = connection.connection_pool.connection_kwargs.get("password")
    if not own:
        raise RedisAuth(
            f"Redis at {address_of(connection)} is used without a password, so it can give no node a login of its own.",
            "Let `tersely up` start the server (queue.host), or set the password of a user with ACL rights.",
        )
    text = "\0".join(("tersely queue login", username, role))
    return hmac.new(str(own).encode(), text.encode(), hashlib.sha256).hexdigest()


def _save(connection: redis.Redis) -> None:
    """Keeps the users over a restart of the server, where it has a file for them."""
    try:
        with redis_errors(address_of(connection)):
            try:
                connection.execute_command("ACL SAVE")  # type: ignore[no-untyped-call]
            except faults.ResponseError as error:
                if "ACL file" not in str(error):
                    raise
                log.info("logins_not_kept", reason="the server has no ACL file: they are made again after a restart")
    except RedisAuth as error:
        log.warning("logins_not_kept", reason=error.message)
