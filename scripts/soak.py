"""A run of the tiny model in which a random role is killed -9 every few seconds, held against the same run left alone.

Usage: python scripts/soak.py [--seed N] [--seconds N] [--out build/soak.json]

Both runs are `tersely up` with real processes, synchronous, with the same seed. In the second one a role is drawn every
5 to 15 seconds (rollout, scorer, trainer, the queue server, the supervisor) and killed with SIGKILL; when that ends
`tersely up`, it is started again with `--resume`, as a service manager would. At the end the runs' final weights and
books are compared and `tersely invariants` looks at both. The directories stay beside the file, for their logs.

Recovery of a role is the time from its kill to the next step that finishes.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer

from tersely.telemetry.events import read_events

ROOT = Path(__file__).resolve().parents[1]
ROLES = ("rollout", "scorer", "trainer", "server", "supervisor")
PAUSE_SECONDS = (5.0, 15.0)
CALM_STEPS = 40
SETTINGS = (
    "evaluation.prompts=0",
    "queue.lease_seconds=3",
    "rollout.workers=2",
    "run.checkpoint_every=10",
    # At the recipe's rate the policy would soon be so good that groups have no signal, which ends a run.
    "learner.learning_rate=1e-5",
)
MOST_TIMES_LONGER = 8
"""A storm that takes this many times its planned seconds is given up."""


class Run:
    """`tersely up` on one run directory, started again as often as it is killed."""

    def __init__(self, run_dir: Path, steps: int) -> None:
        self.dir, self.steps = run_dir, steps
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tersely.cli", "up", str(ROOT / "recipes" / "tiny.toml"), "--plain"]
        command += ["--run-dir", str(self.dir), *(["--resume"] if (self.dir / "log").exists() else [])]
        for setting in (f"run.steps={self.steps}", *SETTINGS):
            command += ["--set", setting]
        with self.dir.with_suffix(".log").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)

    def ended(self) -> bool:
        """Whether the run has finished; if `tersely up` ended without that, it is started again."""
        code = self.process.poll()
        if code is not None and code != 0:
            time.sleep(1)
            self.process = self._start()
        return code == 0

    def events(self) -> Iterator[dict[str, Any]]:
        """What the run has written so far."""
        yield from read_events(self.dir / "events.jsonl")

    def pids(self, role: str) -> list[int]:
        """Living processes of a role."""
        if role == "supervisor":
            return [self.process.pid] if self.process.poll() is None else []
        if role == "server":
            return _children(self.process.pid, ("valkey-server", "redis-server"))
        newest: dict[str, int] = {}
        for event in self.events():
            if event["kind"] in ("service_started", "service_restarted") and event["role"] == role:
                newest[event["name"]] = int(event["pid"])
        return [pid for pid in newest.values() if _is_ours(pid, self.dir)]

    def report(self) -> dict[str, Any]:
        """report.json of the finished run."""
        found: dict[str, Any] = json.loads((self.dir / "report.json").read_text())
        return found


def _children(pid: int, names: tuple[str, ...]) -> list[int]:
    """Living processes of these names that a process has started."""
    try:
        return [child.pid for child in psutil.Process(pid).children() if child.name() in names]
    except psutil.Error:
        return []


def _is_ours(pid: int, run_dir: Path) -> bool:
    """Whether it lives and belongs to the run: numbers of processes are used again."""
    try:
        process = psutil.Process(pid)
        family = [process, *process.parents()]
        return any(str(run_dir) in " ".join(one.cmdline()) for one in family)
    except psutil.Error:
        return False


def storm(run: Run, draw: random.Random, seconds: float) -> list[tuple[float, str]]:
    """Kills roles until the run has finished; (wall time, role) of each kill."""
    kills: list[tuple[float, str]] = []
    begun = time.time()
    due = begun + draw.uniform(*PAUSE_SECONDS)
    while not run.ended():
        if time.time() - begun > MOST_TIMES_LONGER * seconds:
            run.process.kill()
            raise typer.Exit(_say(f"the run did not finish within {MOST_TIMES_LONGER * seconds:.0f} s"))
        if time.time() >= due:
            due = time.time() + draw.uniform(*PAUSE_SECONDS)
            role = draw.choice(ROLES)
            if alive := run.pids(role):
                kills.append((time.time(), role))
                psutil.Process(draw.choice(alive)).send_signal(signal.SIGKILL)
                _say(f"{kills[-1][0] - begun:5.0f} s  kill -9 {role}")
        time.sleep(0.1)
    return kills


def recoveries(run: Run, kills: list[tuple[float, str]]) -> dict[str, dict[str, float | int]]:
    """Seconds from a kill to the next finished step, by role; kills after the last step are not among them."""
    finished = sorted(float(event["time"]) for event in run.events() if event["kind"] == "step_finished")
    found: dict[str, list[float]] = defaultdict(list)
    for when, role in kills:
        if after := [one for one in finished if one > when]:
            found[role].append(after[0] - when)
    return {
        role: {
            "kills": len(values),
            "p50": round(statistics.median(values), 1),
            "p95": round(
                statistics.quantiles(values, n=20, method="inclusive")[-1] if len(values) > 1 else values[0], 1
            ),
        }
        for role, values in sorted(found.items())
    }


def invariants(run: Run) -> dict[str, Any]:
    """What `tersely invariants --json` prints."""
    command = [sys.executable, "-m", "tersely.cli", "invariants", str(run.dir), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return {"exit_code": done.returncode, **json.loads(done.stdout)}


def main(
    seed: Annotated[int, typer.Option(help="Of the kills.")] = 0,
    seconds: Annotated[float, typer.Option(help="About how long the calm run takes; the other one longer.")] = 90.0,
    out: Annotated[Path, typer.Option(help="Where the figures go.")] = ROOT / "build" / "soak.json",
) -> None:
    """Runs both and writes the figures; exit code 1 if anything was lost, trained twice or different."""
    folder = out.with_suffix("").absolute()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    begun = time.time()
    pace = Run(folder / "pace", CALM_STEPS)
    while not pace.ended():
        time.sleep(0.1)
    stamps = [float(event["time"]) for event in pace.events() if event["kind"] == "step_finished"]
    steps = max(CALM_STEPS, round(seconds * (len(stamps) - 1) / (stamps[-1] - stamps[0])))
    _say(f"{steps} steps, {(stamps[-1] - stamps[0]) / (len(stamps) - 1):.2f} s each when calm")
    calm = Run(folder / "calm", steps)
    while not calm.ended():
        time.sleep(0.1)
    calm_seconds, begun = time.time() - begun, time.time()
    run = Run(folder / "storm", steps)
    kills = storm(run, random.Random(seed), seconds)
    groups = run.report()["groups"]
    checked = invariants(run)
    counted: dict[str, int] = defaultdict(int)
    for event in run.events():
        if event["kind"] == "group_trained":
            counted[event["group_id"]] += 1
    lost = groups["issued"] - sum(groups[key] for key in ("trained", "stale", "no_signal", "quarantined"))
    figures = {
        "seed": seed,
        "steps": steps,
        "kills": len(kills),
        "groups_lost": lost,
        "groups_trained_twice": sum(count > 1 for count in counted.values()),
        "groups_quarantined": groups["quarantined"],
        "weights_equal_calm_run": run.report()["final_weights_sha256"] == calm.report()["final_weights_sha256"],
        "invariants_exit_code": checked["exit_code"],
        "recovery_seconds": recoveries(run, kills),
        "seconds": round(time.time() - begun, 1),
        "seconds_with_calm_runs": round(time.time() - begun + calm_seconds, 1),
    }
    out.write_text(json.dumps(figures, indent=1) + "\n")
    typer.echo(json.dumps(figures, indent=1))
    sound = figures["weights_equal_calm_run"] and not checked["exit_code"] and not groups["quarantined"]
    if lost or figures["groups_trained_twice"] or not sound:
        raise typer.Exit(1)


def _say(line: str) -> int:
    typer.echo(line, err=True)
    return 1


if __name__ == "__main__":
    typer.run(main)
