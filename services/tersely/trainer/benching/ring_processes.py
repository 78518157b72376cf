"""Scorers and workers of a measured ring, each an OS process of its own; what they cost, and where a group is when."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from tersely.queue.connect import connect
from tersely.queue.keys import RunKeys
from tersely.testing.stub_pace import STEP_SECONDS_ENV, STEP_TOKENS_ENV
from tersely.v1 import group_pb2

_STOP_SECONDS = 20.0


class Crew:
    """The processes beside the trainer; all are ended at the end of the block.

    Args:
        folder: For their logs.
        trainer: Address to join.
        step_seconds: Seconds that the workers' engine sleeps per step.
        step_tokens: Tokens of each sequence per step.
    """

    def __init__(self, folder: Path, trainer: str, step_seconds: float, step_tokens: int) -> None:
        self._folder = folder
        self._trainer = trainer
        self._environ = {
            **os.environ,
            STEP_SECONDS_ENV: str(step_seconds),
            STEP_TOKENS_ENV: str(step_tokens),
            "OMP_NUM_THREADS": "1",
        }
        self._processes: dict[str, list[subprocess.Popen[bytes]]] = {"rollout": [], "scorer": []}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        everyone = [process for processes in self._processes.values() for process in processes]
        for process in everyone:
            process.terminate()
        for process in everyone:
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def count(self, role: str) -> int:
        """Processes of a role."""
        return len(self._processes[role])

    def grow(self, role: str, to: int) -> None:
        """Starts processes of a role until there are so many."""
        command = [sys.executable, "-m", "tersely.cli", role, "--trainer", self._trainer, "--log-json"]
        if role == "rollout":
            command += ["--engine", "stub"]
        self._folder.mkdir(parents=True, exist_ok=True)
        while self.count(role) < to:
            with (self._folder / f"{role}-{self.count(role):02d}.log").open("wb") as log:
                process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._environ)
            self._processes[role].append(process)

    def cpu_seconds(self, queue_server_pid: int) -> dict[str, float]:
        """CPU seconds used so far, by role; those of this process are the trainer's."""
        pids = {role: [process.pid for process in found] for role, found in self._processes.items()}
        pids |= {"trainer": [os.getpid()], "queue_server": [queue_server_pid]}
        return {role: sum(map(_cpu_seconds, members)) for role, members in pids.items()}


class HopWatch:
    """Reads along on the three streams and notes when each group came into each, by the server's clock.

    Args:
        redis_url: Queue server.
        keys: Keys of the run.
    """

    def __init__(self, redis_url: str, keys: RunKeys) -> None:
        self._client = connect(redis_url)
        self._keys = (keys.prompts, keys.completions, keys.scored)
        self._seen: dict[str, dict[str, int]] = {key: {} for key in self._keys}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._read, name="hop-watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join()
        self._client.close()

    def hops(self, arrivals: Sequence[tuple[float, group_pb2.ScoredGroup]]) -> dict[str, float]:
        """Milliseconds of each hop beside generating and scoring, median over groups.

        Args:
            arrivals: (Unix time of the log entry, group) of groups that went round alone.

        Returns:
            `prompt_to_completion` (leased, admitted, handed on), `completion_to_scored`, `scored_to_log`, and their sum
            `round` per group; empty where no group was seen in all three streams.
        """
        found: dict[str, list[float]] = {}
        for at, scored in arrivals:
            group_id = scored.group.prompt.group_id
            times = [self._seen[key].get(group_id) for key in self._keys]
            sent, generated, judged = times
            if sent is None or generated is None or judged is None:
                continue
            hops = {
                "prompt_to_completion": generated - sent - 1e3 * scored.group.generate_seconds,
                "completion_to_scored": judged - generated - 1e3 * scored.score_seconds,
                "scored_to_log": 1e3 * at - judged,
            }
            for name, value in {**hops, "round": sum(hops.values())}.items():
                found.setdefault(name, []).append(value)
        return {name: round(statistics.median(values), 2) for name, values in found.items()}

    def _read(self) -> None:
        last: dict[Any, Any] = dict.fromkeys(self._keys, "$")
        while not self._stopping.is_set():
            answer: Any = self._client.xread(last, block=200)
            for key, entries in answer or ():
                name = key.decode()
                for entry_id, fields in entries:
                    last[name] = entry_id
                    self._seen[name].setdefault(fields[b"g"].decode(), int(entry_id.split(b"-")[0]))


def per_group_ms(before: Mapping[str, float], after: Mapping[str, float], groups: int) -> dict[str, float]:
    """CPU milliseconds per group and role between two readings of `Crew.cpu_seconds`."""
    spent = {role: after[role] - before[role] for role in before}
    spent["all"] = sum(spent.values())
    return {role: round(1e3 * seconds / max(groups, 1), 2) for role, seconds in spent.items()}


def _cpu_seconds(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)
