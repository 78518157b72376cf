"""Stalls made with real processes, and how long the watchdog takes to name each.

Usage: python scripts/stalls.py [build/stalls.json]

Two runs of the tiny model, whose services are killed, stopped and starved one after the other; between two stalls the
run has to go on by itself. The logs stay beside the file, in `stalls/`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import typer

from tersely.queue import connect
from tersely.supervise.run_dir import RunDir
from tersely.testing.proxy import CuttingProxy
from tersely.testing.services import Services
from tersely.testing.stub_pace import STEP_SECONDS_ENV
from tersely.v1 import judge_pb2, judge_pb2_grpc
from tersely.view.status import read_status

ROOT = Path(__file__).resolve().parents[1]
SETS = (
    "run.steps=1000000",
    "run.groups_per_step=2",
    "run.group_size=4",
    "run.max_steps_without_signal=1000000",
    "run.checkpoint_every=1000000",
    "evaluation.prompts=0",
    "queue.lease_seconds=4",
)
WITHIN_SECONDS = 30.0


class FakeJudge(judge_pb2_grpc.JudgeServiceServicer):
    """Gives every summary some score, or none while a file is there, as when the breaker is open."""

    def __init__(self, breaker: Path) -> None:
        self._breaker = breaker

    def Judge(  # noqa: N802 - the proto's name
        self, request: judge_pb2.JudgeRequest, context: grpc.ServicerContext
    ) -> judge_pb2.JudgeResponse:
        """Answers at once."""
        return self._response(request)

    def JudgeBatch(  # noqa: N802 - the proto's name
        self, request: judge_pb2.JudgeBatchRequest, context: grpc.ServicerContext
    ) -> judge_pb2.JudgeBatchResponse:
        """Answers at once."""
        return judge_pb2.JudgeBatchResponse(responses=[self._response(each) for each in request.requests])

    def _response(self, request: judge_pb2.JudgeRequest) -> judge_pb2.JudgeResponse:
        response = judge_pb2.JudgeResponse(id=request.id)
        if self._breaker.exists():
            response.axes.add(name="clarity", error="judge_circuit_open")
        else:
            response.composite = zlib.crc32(request.summary.encode()) % 400 / 100
        return response


class Bench:
    """One run and the stalls made in it.

    Args:
        folder: For everything.
        sets: Items of `--set`, beside those of all runs.
    """

    def __init__(self, folder: Path, *sets: str) -> None:
        self.folder = folder
        self.services = Services(folder, ROOT / "recipes" / "tiny.toml", (*SETS, *sets), workers=0)
        self.results: list[dict[str, Any]] = []

    def __enter__(self) -> Bench:
        self.services.__enter__()
        self.trainer = self.services.start_trainer(resume=False)
        return self

    def __exit__(self, *error: Any) -> None:
        self.services.__exit__(*error)

    @property
    def status(self) -> dict[str, Any]:
        """As `tersely status --json` gives it."""
        run = RunDir(self.services.run_dir)
        return read_status(run) if self.services.run_dir.exists() and run.status.exists() else {}

    @property
    def trainer_address(self) -> str:
        """Where workers join."""
        self.wait_for("the trainer", lambda: (self.services.run_dir / "run.json").exists())
        return str(json.loads((self.services.run_dir / "run.json").read_text())["trainer_address"])

    def worker(self, address: str, *words: str) -> subprocess.Popen[bytes]:
        """A worker that joins by an address."""
        return self.services.start("rollout", "--trainer", address, *words)

    def wait_for(self, what: str, check: Callable[[], Any], seconds: float = 240) -> None:
        """Waits until it is so."""
        deadline = time.monotonic() + seconds
        while not check():
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {seconds:.0f} s for {what}; status: {json.dumps(self.status)[:2000]}")
            time.sleep(0.2)

    def goes_on(self, steps: int = 3) -> None:
        """Waits for steps after this moment, without a stall."""
        since = int(self.status.get("step") or 0)
        self.wait_for(
            f"{steps} more steps",
            lambda: int(self.status.get("step") or 0) >= since + steps and not self.status.get("stall"),
        )

    @contextlib.contextmanager
    def stall(self, case: str, *names: str) -> Iterator[None]:
        """Looks what the watchdog calls what the caller has just begun; the block then ends it."""
        began, said = time.monotonic(), ""
        while not said and time.monotonic() - began < 2 * WITHIN_SECONDS:
            said = (self.status.get("stall") or {}).get("name", "")
            time.sleep(0.2)
        seconds = round(time.monotonic() - began, 1)
        right = said in names and seconds <= WITHIN_SECONDS
        self.results.append({"name": case, "said": said, "seconds_to_name": seconds, "named_right": right})
        stall = self.status.get("stall") or {}
        typer.echo(f"{'ok ' if right else 'BAD'} {case}: {said} after {seconds} s: {stall.get('message')}")
        yield


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A process that is stopped, and goes on afterwards."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def helper(*words: str) -> Iterator[subprocess.Popen[bytes]]:
    """This script as another process, in one of its small parts."""
    with subprocess.Popen([sys.executable, __file__, *words]) as process:
        try:
            yield process
        finally:
            process.kill()


def ring_stalls(folder: Path) -> list[dict[str, Any]]:
    """Stalls of workers, scorer, queue server, link and trainer."""
    with Bench(folder) as bench, contextlib.ExitStack() as stack:
        services = bench.services
        (scorer,) = services.joined
        port = _free_port()
        relay = stack.enter_context(helper("relay", str(port), bench.trainer_address))
        worker = bench.worker(f"127.0.0.1:{port}")
        bench.goes_on(5)
        with stopped(relay.pid), bench.stall("link_to_the_trainer_stands_still", "fetch_stuck"):
            pass
        bench.goes_on()
        with connect(json.loads((services.run_dir / "run.json").read_text())["redis_url"]) as client:
            pid = int(client.info("server")["process_id"])
            with stopped(pid), bench.stall("queue_server_stopped", "redis_unreachable"):
                pass
            bench.goes_on()
            client.config_set("maxmemory-policy", "noeviction")
            client.config_set("maxmemory", 1)
            with bench.stall("queue_server_out_of_memory", "redis_refuses_writes"):
                client.config_set("maxmemory", 0)
        bench.goes_on()
        _kill(scorer)
        with bench.stall("scorer_killed", "no_scorer"):
            services.start("scorer", "--trainer", bench.trainer_address)
        bench.goes_on()
        _kill(worker)
        with bench.stall("worker_killed", "no_worker", "dead_leases"):
            bench.worker(bench.trainer_address)
        bench.goes_on()
        os.environ[STEP_SECONDS_ENV] = "3600"
        slow = bench.worker(bench.trainer_address, "--engine", "stub")
        del os.environ[STEP_SECONDS_ENV]
        bench.wait_for("the slow worker's lease", lambda: _leases(bench.status, slow.pid) > 0)
        with bench.stall("worker_without_progress", "worker_stuck"):
            _kill(slow)
        bench.goes_on()
        with stopped(bench.trainer.pid), bench.stall("trainer_stopped", "trainer_silent"):
            pass
        bench.goes_on()
        return bench.results


def judge_stalls(folder: Path) -> list[dict[str, Any]]:
    """Stalls of a judge that is a reward."""
    folder.mkdir(parents=True)
    port, breaker = _free_port(), folder / "breaker-open"
    sets = ("rewards.judge.weight=1", f'rewards.judge.address="127.0.0.1:{port}"')
    with helper("judge", str(port), str(breaker)) as judge, Bench(folder, *sets) as bench:
        bench.worker(bench.trainer_address)
        bench.goes_on(5)
        with stopped(judge.pid), bench.stall("judge_does_not_answer", "scorer_stuck"):
            pass
        bench.goes_on()
        breaker.touch()
        with bench.stall("judge_breaker_open", "judge_breaker_open"):
            breaker.unlink()
        bench.goes_on()
        return bench.results


def main() -> int:
    """Makes all stalls; 1 when one was not named right."""
    if sys.argv[1:2] == ["relay"]:
        return _relay(int(sys.argv[2]), sys.argv[3])
    if sys.argv[1:2] == ["judge"]:
        return _judge(int(sys.argv[2]), Path(sys.argv[3]))
    path = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "build" / "stalls.json").resolve()
    folder = path.with_suffix("")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(ring_stalls, folder / "ring"), pool.submit(judge_stalls, folder / "judge")]
        results = [result for future in both for result in future.result()]
    path.write_text(json.dumps(results, indent=1) + "\n")
    return 0 if all(result["named_right"] for result in results) else 1


def _relay(port: int, target: str) -> int:
    """Forwards a port; stopping this process makes a link that stands still."""
    with CuttingProxy(target, port=port):
        signal.pause()
    return 0


def _judge(port: int, breaker: Path) -> int:
    server = grpc.server(ThreadPoolExecutor(4))
    judge_pb2_grpc.add_JudgeServiceServicer_to_server(FakeJudge(breaker), server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    signal.pause()
    return 0


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def _leases(status: dict[str, Any], pid: int) -> int:
    return sum(int(node.get("leases") or 0) for node in status.get("nodes") or () if node["pid"] == pid)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
