"""One run, a worker process per engine: all contribute, all hold every version, none restarts."""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tersely.models.tiny import make_tiny_model

TINY = Path(__file__).parents[2] / "recipes" / "tiny.toml"
VLLM = Path(os.environ.get("TERSELY_VLLM_ENV", Path(__file__).parents[2] / ".venv-vllm")) / "bin" / "python"
ENGINES = ["torch", "mlx", *(["vllm"] if VLLM.exists() else [])]
VLLM_IS_REQUIRED = os.environ.get("CI") == "true" and (sys.platform, platform.machine()) == ("linux", "x86_64")
PATIENCE_SECONDS = 500.0
VERSIONS, GROUPS = 5, 3
"""What each worker has to hold and to generate before the run is ended."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def make_model(folder: Path) -> Path:
    """The tiny model with heads of 64, the least that vLLM's attention takes on a CPU."""
    made = make_tiny_model(folder / "model")
    config = LlamaConfig.from_pretrained(made)
    config.hidden_size, config.num_attention_heads, config.num_key_value_heads, config.head_dim = 128, 2, 1, 64
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(made)
    return made


class Run:
    """`tersely up` without workers, and workers that join it by its address alone."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.run_dir = folder, folder / "run"
        sets = ("run.steps=2000", "rollout.workers=0", "evaluation.prompts=0", f"model.name={make_model(folder)}")
        words = [word for item in sets for word in ("--set", item)]
        self.up = self._start(sys.executable, "up", str(TINY), "--run-dir", str(self.run_dir), "--plain", *words)
        self.workers: dict[str, subprocess.Popen[bytes]] = {}
        self.codes: dict[str, int] = {}

    def _start(self, python: str, *words: str) -> subprocess.Popen[bytes]:
        name = words[0] if words[0] == "up" else f"{words[0]}-{words[-1]}"
        with (self.folder / f"{name}.log").open("wb") as log:
            return subprocess.Popen(
                [python, "-m", "tersely.cli", *words],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )

    def join(self, engine: str) -> None:
        until(lambda: (self.run_dir / "run.json").exists(), "the trainer's address")
        address = json.loads((self.run_dir / "run.json").read_text())["trainer_address"]
        python = str(VLLM) if engine == "vllm" else sys.executable
        self.workers[engine] = self._start(
            python, "rollout", "--trainer", address, "--threads", "1", "--log-json", "--engine", engine
        )

    def log(self, engine: str, event: str) -> list[dict[str, Any]]:
        rows = []
        for line in (self.folder / f"rollout-{engine}.log").read_text().splitlines():
            if line.startswith("{") and line.endswith("}"):
                rows.append(json.loads(line))
        return [row for row in rows if row.get("event") == event]

    def held(self, engine: str) -> dict[int, str]:
        """Version to (the first digits of its) hash, of what the worker put into its engine."""
        found = [re.fullmatch(r"v(\d+) \((\w+)\)", row["weights"]) for row in self.log(engine, "weights_held")]
        return {int(match[1]): match[2] for match in found if match is not None}

    def first_version(self) -> int:
        """The first that all have to hold: what was made while an engine loaded its first weights is skipped."""
        generated = [self.log(engine, "group_generated")[0]["weights"] for engine in self.workers]
        return max(int(re.match(r"v(\d+)", label)[1]) for label in generated)  # type: ignore[index]

    def events(self, kind: str) -> list[dict[str, Any]]:
        path = self.run_dir / "events.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
        return [row for row in rows if row["kind"] == kind]

    def has_done_enough(self) -> bool:
        for engine, process in self.workers.items():
            assert process.poll() is None, (self.folder / f"rollout-{engine}.log").read_text()
        assert self.up.poll() is None, (self.folder / "up.log").read_text()
        trained = [
            node["engine"] for step in self.events("step_finished") for node in step["mismatch_by_node"].values()
        ]
        return (
            all(
                len(self.held(engine)) >= VERSIONS
                and len(self.log(engine, "group_generated")) >= GROUPS
                and engine in trained
                for engine in self.workers
            )
            and min(max(self.held(engine)) for engine in self.workers) >= self.first_version() + VERSIONS
        )

    def end(self) -> dict[str, int]:
        """Exit codes, after everything was told to end in good order."""
        processes = {"up": self.up, **self.workers}
        for process in processes.values():
            process.send_signal(signal.SIGTERM)
        return {name: process.wait(60) for name, process in processes.items()}

    def kill(self) -> None:
        for process in (self.up, *self.workers.values()):
            process.kill()
            process.wait()


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.3)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A run that all engines have taken part in, and that has ended."""
    made = Run(tmp_path_factory.mktemp("mixed"))
    try:
        for engine in reversed(ENGINES):
            made.join(engine)
        until(made.has_done_enough, "every engine's share")
        made.codes = made.end()
        yield made
    finally:
        made.kill()


def test_vllm_is_one_of_the_engines() -> None:
    if "vllm" not in ENGINES and not VLLM_IS_REQUIRED:
        pytest.skip(f"the run goes without vLLM: {VLLM} is missing; `make setup-vllm`, or set TERSELY_VLLM_ENV")
    assert "vllm" in ENGINES, f"{VLLM} is missing, and with CI=true on x86-64 Linux it may not be"


def test_every_engine_contributes_and_agrees_with_the_learner(run: Run) -> None:
    by_engine: dict[str, list[float]] = {}
    for step in run.events("step_finished"):
        for node in step["mismatch_by_node"].values():
            by_engine.setdefault(node["engine"], []).append(node["nats"])
    assert by_engine.keys() == set(ENGINES)
    limits = {"torch": 1e-5, "mlx": 1e-4, "vllm": 1e-3}
    assert {engine: max(nats) for engine, nats in by_engine.items() if max(nats) > limits[engine]} == {}


def test_every_worker_holds_every_version_under_the_same_hash(run: Run) -> None:
    held = {engine: run.held(engine) for engine in ENGINES}
    first = run.first_version()
    last = min(max(labels) for labels in held.values())
    assert last - first >= VERSIONS - 1
    for version in range(first, last + 1):
        assert len({labels.get(version) for labels in held.values()}) == 1, f"version {version}: {held}"


def test_every_swap_is_proved_by_the_probe(run: Run) -> None:
    for engine in ENGINES:
        differences = [row["probe_difference"] for row in run.log(engine, "weights_held")]
        assert None not in differences
        assert max(differences) < 1e-3


def test_no_process_is_started_again(run: Run) -> None:
    assert run.codes == {"up": 128 + signal.SIGTERM, **dict.fromkeys(ENGINES, 0)}
    assert run.events("service_died") == []
    assert all(len(run.log(engine, "joined")) == 1 for engine in ENGINES)
