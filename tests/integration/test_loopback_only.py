"""A default `tersely up` opens nothing to the network: every socket of every process of it is looked at and dialled."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from ipaddress import ip_address
from pathlib import Path

import psutil
import pytest

TINY = Path(__file__).parents[2] / "recipes" / "tiny.toml"
SETS = ("run.steps=500", "rollout.engine=stub", "evaluation.prompts=0", "run.groups_per_step=2", "run.group_size=2")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


def listening(pid: int) -> list[tuple[str, int]]:
    """Addresses that a process and its children listen on, e.g. ("127.0.0.1", 4711)."""
    found = []
    for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
        try:
            sockets = process.net_connections("inet")
        except psutil.NoSuchProcess:
            continue
        found += [(s.laddr.ip, s.laddr.port) for s in sockets if s.status == psutil.CONN_LISTEN or s.type == 2]
    return found


def is_loopback(address: str) -> bool:
    return ip_address(address.removeprefix("::ffff:")).is_loopback


def own_addresses() -> list[str]:
    """Addresses by which other machines could reach this one."""
    inet = [a.address for each in psutil.net_if_addrs().values() for a in each if a.family == socket.AF_INET]
    return [address for address in inet if not is_loopback(address)]


def takes_connections(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=1).close()
    except OSError:
        return False
    return True


def test_a_default_run_listens_on_loopback_only(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    command = [sys.executable, "-m", "tersely.cli", "up", str(TINY), "--run-dir", str(run_dir), "--plain"]
    command += [word for item in SETS for word in ("--set", item)]
    with (tmp_path / "up.log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as up:
        try:
            deadline = time.monotonic() + 180
            while True:  # until all roles are at work, so that every port is open
                assert up.poll() is None, (tmp_path / "up.log").read_text()
                assert time.monotonic() < deadline, (tmp_path / "up.log").read_text()
                status = run_dir / "status.json"
                if status.exists() and json.loads(status.read_text())["step"] >= 1:
                    break
                time.sleep(0.1)
            found = listening(up.pid)
            ports = {port for _, port in found}
            from_here = {port for port in ports if takes_connections("127.0.0.1", port)}
            with socket.create_server(("", 0)) as control:
                reachable = [own for own in own_addresses() if takes_connections(own, control.getsockname()[1])]
            open_to_all = [(own, port) for own in reachable for port in ports if takes_connections(own, port)]
        finally:
            up.kill()
            # The services and the queue server end with it.
    assert len(from_here) >= 2, found  # trainer and queue server: the probe does find open ports
    assert [address for address in found if not is_loopback(address[0])] == []
    assert open_to_all == []
