"""A run over TLS with a queue server that other machines reach, through its loss, its amnesia and a revoked node.

Each machine is a folder of identities of its own; they reach each other by an address that is not loopback.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis

from tersely.identity.folder import FOLDER_ENV
from tersely.queue import connect
from tersely.queue.acl import nodes_of
from tersely.queue.server import ADMIN
from tersely.queue.tls import QueueTls

TINY = Path(__file__).parents[2] / "recipes" / "tiny.toml"
STEPS = 60
SETS = (
    f"run.steps={STEPS}",
    "run.checkpoint_every=20",
    "rollout.engine=stub",
    "evaluation.prompts=0",
    "queue.lease_seconds=3",
)
LAN = ("rpc.host=0.0.0.0", "rpc.join_port=0", "queue.host=0.0.0.0", "rollout.workers=0")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not os.environ.get("TERSELY_FAULTS"), reason="minutes long: make faults"),
]


def cli(*words: str) -> list[str]:
    return [sys.executable, "-m", "tersely.cli", *words]


def lan_address() -> str:
    """An address of this machine that is not loopback."""
    inet = [a.address for each in psutil.net_if_addrs().values() for a in each if a.family == socket.AF_INET]
    found = [address for address in inet if not address.startswith("127.")]
    if not found:
        pytest.skip("this machine has no address but loopback")
    return found[0]


class Lan:
    """One machine with authority, trainer, scorer and queue server, and others that join it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run_dir = folder / "run"
        self.processes: list[subprocess.Popen[bytes]] = []
        self.tersely("home", "ca", "init")

    def environ(self, machine: str) -> dict[str, str]:
        return {**os.environ, FOLDER_ENV: str(self.folder / machine), "OMP_NUM_THREADS": "1"}

    def tersely(self, machine: str, *words: str, told: str = "") -> str:
        done = subprocess.run(
            cli(*words), env=self.environ(machine), input=told, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start(self, machine: str, *words: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{machine}-{len(self.processes)}.log").open("wb") as log:
            process = subprocess.Popen(
                cli(*words), env=self.environ(machine), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self.processes.append(process)
        return process

    def up(self) -> subprocess.Popen[bytes]:
        sets = [word for item in (*SETS, *LAN) for word in ("--set", item)]
        return self.start("home", "up", str(TINY), "--run-dir", str(self.run_dir), "--plain", *sets)

    def join(self, machine: str) -> subprocess.Popen[bytes]:
        """Joins by token, then samples."""
        run = json.loads((self.run_dir / "run.json").read_text())
        host = lan_address()
        join_port, port = (run[key].rpartition(":")[2] for key in ("join_address", "trainer_address"))
        token = self.tersely("home", "token", "create", "--role", "rollout").strip().splitlines()[-1]
        self.tersely(machine, "join", f"{host}:{join_port}", "--token", "-", told=token)
        return self.start(machine, "rollout", "--trainer", f"{host}:{port}", "--log-json")

    @contextmanager
    def admin(self) -> Iterator[redis.Redis]:
        folder, port = self.folder / "home" / "trainer", self.redis_url().rpartition(":")[2]
        tls = QueueTls(folder / "node.pem", folder / "ca.pem", "trainer.tersely")
        with connect(f"rediss://127.0.0.1:{port}", username=ADMIN, password=self.password(), tls=tls) as client:
            yield client

    def redis_url(self) -> str:
        return str(json.loads((self.run_dir / "run.json").read_text())["redis_url"])

    def password(self) -> str:
        return (self.run_dir / "valkey" / "password").read_text().strip()

    def queue_server(self) -> int:
        return int((self.run_dir / "valkey" / "valkey.pid").read_text())

    def step(self) -> int:
        path = self.run_dir / "status.json"
        return int(json.loads(path.read_text())["step"]) if path.exists() else 0

    def said(self) -> str:
        logs = [*self.folder.glob("*.log"), *self.run_dir.glob("logs/*.log"), *self.run_dir.glob("valkey/*.log")]
        return "\n".join(f"== {log.name}\n{log.read_text(errors='replace')}" for log in logs)

    def wait(self, what: str, check: Callable[[], Any], seconds: float = 120) -> Any:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            found = check()
            if found:
                return found
            time.sleep(0.05)
        raise AssertionError(f"{what} did not come\n{self.said()}")

    def logins(self) -> set[str]:
        """Nodes that have a user now; none while the server is away."""
        try:
            with self.admin() as client:
                return {node for _, node in nodes_of(client)}
        except Exception:  # noqa: BLE001 - asked again until the test gives up
            return set()


@pytest.fixture
def lan(tmp_path: Path) -> Iterator[Lan]:
    lan = Lan(tmp_path)
    try:
        yield lan
    finally:
        for process in lan.processes:
            process.kill()
            process.wait()


def calm_weights(folder: Path) -> str:
    """Final weights of the same run on one machine, which nobody disturbs."""
    sets = [word for item in SETS for word in ("--set", item)]
    done = subprocess.run(
        cli("up", str(TINY), "--run-dir", str(folder), "--plain", *sets),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return str(json.loads((folder / "report.json").read_text())["final_weights_sha256"])


def secrets_of(lan: Lan) -> set[str]:
    """The trainer's password, and those of the nodes as anybody with the trainer's could work them out."""
    found = {lan.password()}
    with lan.admin() as client:
        for user, node in nodes_of(client):
            role = node.partition("-")[0]
            text = "\0".join(("tersely queue login", user, role))
            found.add(hmac.new(lan.password().encode(), text.encode(), hashlib.sha256).hexdigest())
    return found


def test_server_killed_then_emptied_and_a_node_revoked_and_the_weights_are_those_of_the_calm_run(
    lan: Lan, tmp_path: Path
) -> None:
    up = lan.up()
    lan.wait("the trainer", lambda: (lan.run_dir / "run.json").exists())
    first, second = lan.join("mac-a"), lan.join("mac-b")
    lan.wait("both nodes' users", lambda: sum(node.startswith("rollout") for node in lan.logins()) == 2)
    lan.wait("the first steps", lambda: lan.step() >= 3)

    secrets = secrets_of(lan)
    assert len(secrets) == 4  # trainer, scorer, two workers
    for process in psutil.process_iter(["pid", "cmdline"]):
        command = " ".join(process.info["cmdline"] or ())
        assert not [secret for secret in secrets if secret in command]

    os.kill(lan.queue_server(), signal.SIGKILL)
    reached = lan.step()
    lan.wait("steps after the server was killed", lambda: lan.step() >= reached + 3)

    with lan.admin() as client:  # as a server that comes back with neither data nor users
        users = [user for user, _ in nodes_of(client)]
        client.pipeline().flushall().execute_command("ACL DELUSER", *users).execute()  # type: ignore[no-untyped-call]
    reached = lan.step()
    lan.wait("steps after the server was emptied", lambda: lan.step() >= reached + 3)
    lan.wait("the users again", lambda: len(lan.logins()) == 3)

    bad = node_of(lan, "mac-a")
    lan.tersely("home", "token", "revoke", bad)
    lan.wait("the end of the revoked node's user", lambda: bad not in (lan.logins() or {bad}), 30)
    assert first.wait(60) == 108, lan.said()
    assert up.wait(300) == 0, lan.said()

    report = json.loads((lan.run_dir / "report.json").read_text())
    groups = report["groups"]
    assert groups["trained"] == STEPS * 4
    assert (groups["quarantined"], groups["in_flight"]) == (0, 0)
    said = lan.said() + (lan.run_dir / "events.jsonl").read_text()
    assert not [secret for secret in secrets if secret in said]
    second.kill()
    assert report["final_weights_sha256"] == calm_weights(tmp_path / "calm")


def node_of(lan: Lan, machine: str) -> str:
    """Name of the node that a machine is."""
    shown = json.loads(lan.tersely(machine, "ca", "show", "--json"))
    return str(shown["identities"][0]["name"])
