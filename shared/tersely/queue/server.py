"""A queue server that other machines may reach: TLS on both sides, no user without a password.

It is a redis-server or valkey-server found on this machine; the embedded one has no TLS. Its files, for their owner
only, are in its folder beside the data: `password` of the user `tersely`, who may do everything, and `users.acl`, which
holds hashes. Passwords are in no command line and no log.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tersely.errors import RedisServerMissing, RedisTooOld, RedisUnreachable
from tersely.queue.connect import check_version
from tersely.queue.process import ServerProcess
from tersely.queue.tls import OwnTlsConnection, QueueTls
from tersely.rpc.address import Address

ADMIN = "tersely"
"""User of the trainer, who makes those of the nodes."""
_NAMES = ("valkey-server", "redis-server")
_FOLDERS = ("/opt/homebrew/bin", "/usr/local/bin", "/usr/bin", "/usr/sbin")
_VERSION = re.compile(r"(?P<server>redis|valkey) server v=(?P<version>[0-9.]+)", re.IGNORECASE)
_LOOPBACK = "127.0.0.1"
_ALL = ("0.0.0.0", "::")


def find_server(given: str | None = None) -> Path:
    """A server on this machine that can do TLS and is new enough.

    Args:
        given: Path or name of the only one to look at.

    Raises:
        RedisServerMissing: There is none; the message says what was found instead.
    """
    reasons = []
    for candidate in _candidates([given] if given else _NAMES):
        reason = _why_not(candidate)
        if reason is None:
            return candidate
        reasons.append(f"{candidate} {reason}")
    what = "; ".join(reasons) or f"no {given or ' or '.join(_NAMES)} was found"
    raise RedisServerMissing(
        f"A queue server for other machines needs TLS, which the embedded Valkey has not: {what}.",
        "Install one (macOS: brew install valkey; Debian: apt-get install redis-server), or name one in queue.server.",
    )


class TlsServer(ServerProcess):
    """A server with TLS and named users only, for the machine that has the trainer's certificate.

    Args:
        folder: Data, log, users and password; made if missing.
        host: Address to listen on; loopback is always listened on, too.
        port: Port; 0: a free one.
        binary: From `find_server`.
        tls: Files of the trainer's identity.
    """

    umask = 0o077

    def __init__(self, folder: Path, host: str, port: int, binary: Path, tls: QueueTls) -> None:
        super().__init__(folder, port)
        self._host = host
        self._binary = binary
        self._tls = tls

    @property
    def url(self) -> str:
        """URL for `connect` with `QueueTls`; 0.0.0.0 or :: stand for any address of this machine."""
        return f"rediss://{Address(self._host, self.port)}"

    @property
    def username(self) -> str:
        """The user that may do everything."""
        return ADMIN

    @property
    def password(self) -> str:
        """Password of the user `ADMIN`; made at the first start, the same after each other."""
        from tersely.identity.folder import make_private_folder, read_private, write_private

        file = self._folder / "password"
        if not file.exists():
            make_private_folder(self._folder)
            write_private(file, secrets.token_hex(32).encode() + b"\n")
        return read_private(file).decode().strip()

    def start(self, timeout_seconds: float = 20.0) -> None:
        """Starts the server and waits until it answers; does nothing if it runs.

        Raises:
            RedisUnreachable: It ended or did not answer in time.
            IdentityInvalid: Others can read the password's file.
        """
        from tersely.identity.folder import make_private_folder

        if not self.alive:
            make_private_folder(self._folder)
            self._write_users()
        super().start(timeout_seconds)

    def _write_users(self) -> None:
        """Nodes' users stay as the server saved them; the first two lines are always these."""
        from tersely.identity.folder import write_private

        file = self._folder / "users.acl"
        digest = hashlib.sha256(self.password.encode()).hexdigest()
        lines = ["user default off resetkeys resetchannels -@all", f"user {ADMIN} on #{digest} ~* &* +@all"]
        if file.exists():
            saved = file.read_text(encoding="utf-8").splitlines()
            fixed = ("user default ", f"user {ADMIN} ")
            lines += [line for line in saved if line.startswith("user ") and not line.startswith(fixed)]
        write_private(file, "\n".join([*lines, ""]).encode())

    def _command(self, port: int) -> list[str]:
        return [
            str(self._binary),
            *("--port", "0"),
            *("--tls-port", str(port)),
            *("--bind", *([self._host] if self._host in _ALL else dict.fromkeys((self._host, _LOOPBACK)))),
            *("--tls-cert-file", str(self._tls.certificate_file)),
            *("--tls-key-file", str(self._tls.certificate_file)),
            *("--tls-ca-cert-file", str(self._tls.authority_file)),
            *("--tls-auth-clients", "yes"),
            *("--tls-protocols", "TLSv1.3"),
            *("--aclfile", str(self._folder / "users.acl")),
        ]

    def _client(self, port: int) -> redis.Redis:
        host = "::1" if self._host == "::" else _LOOPBACK
        pool = redis.ConnectionPool(
            connection_class=OwnTlsConnection,
            own_tls=self._tls,
            host=host,
            port=port,
            username=ADMIN,
            password=self.password,
            socket_timeout=1,
            protocol=2,
            retry=Retry(NoBackoff(), 0),
        )
        return redis.Redis.from_pool(pool)

    def _pick_port(self) -> int:
        with socket.create_server((self._host, 0), family=_family(self._host)) as probe:
            return int(probe.getsockname()[1])

    def _not_started(self, log: Path) -> RedisUnreachable:
        where = Address(self._host, self._port or 0)
        return RedisUnreachable(
            f"{self._binary.name} did not start at {where}; its log is {log}.",
            "Read the log: is the port taken, or is the address not this machine's (queue.host, queue.port)?",
        )


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _candidates(names: Iterable[str]) -> Iterable[Path]:
    seen = set()
    for name in names:
        found = [shutil.which(name), *(shutil.which(name, path=folder) for folder in _FOLDERS)]
        for path in dict.fromkeys(found):
            if path is not None and (real := Path(path).resolve()) not in seen:
                seen.add(real)
                yield Path(path)


def _why_not(binary: Path) -> str | None:
    """What is wrong with a server, in words; None: nothing."""
    match = _VERSION.search(_say(binary, "--version"))
    if match is None:
        return "does not say what it is"
    try:
        check_version(match["server"].lower(), match["version"], str(binary))
    except RedisTooOld:
        return f"is {match['server']} {match['version']}, which is too old"
    # With TLS it misses a certificate and ends; without, it does not know what TLS is and ends.
    said = _say(binary, "--port", "0", "--tls-port", "1", "--save", "", "--appendonly", "no")
    return None if "tls-cert-file" in said else "was built without TLS"


def _say(binary: Path, *arguments: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(
                [str(binary), *arguments],
                capture_output=True,
                cwd=folder,
                timeout=60,
                check=False,
                encoding="utf-8",
                errors="replace",
            )
        except (OSError, subprocess.TimeoutExpired):
            return ""
    return done.stdout + done.stderr
