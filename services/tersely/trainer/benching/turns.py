"""Our whole step and the peer's, each turn in fresh processes, one after the other."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tersely.errors import PackageMissing, ServiceFailed
from tersely.models.tokenizer import PolicyTokenizer
from tersely.trainer.benching.prompts import bench_prompts
from tersely.trainer.benching.shapes import HEADLINE

GROUPS = HEADLINE.prompts
WARM_UP_STEPS = 1
"""Steps of each process that are not counted: the first one pays for what is made once."""

_DRIVER = Path(__file__).with_name("trl_step.py")
_WAITING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
_SPIN_COUNT = "1000"
"""As the services set it where the user does not."""


def find_peer() -> Path:
    """Python of the peer's environment: `.venv-trl` in the current folder, or beside our own environment.

    Raises:
        PackageMissing: There is none.
    """
    for base in (Path.cwd(), Path(sys.prefix).parent):
        python = base / ".venv-trl" / "bin" / "python"
        if python.exists():
            return python
    raise PackageMissing(
        "The peer's environment .venv-trl is neither in the current folder nor beside ours.",
        "Run `make bench` in a checkout, which makes it (1.5 GB), or leave the peer out with --quick.",
    )


def waiting_settings() -> dict[str, str]:
    """How OpenMP's threads wait at barriers, the same on both sides: as the user says, else as our services set it."""
    given = {name: os.environ[name] for name in _WAITING if name in os.environ}
    return given or {"GOMP_SPINCOUNT": _SPIN_COUNT}


class Turns:
    """Runs jobs in processes.

    Args:
        model_folder: The policy on both sides.
        threads: CPU threads of each process.
        steps: Steps that count, in each process.
        progress: Told of each turn.
    """

    def __init__(self, model_folder: Path, threads: int, steps: int, progress: Callable[[str], None]) -> None:
        self._progress = progress
        prompts = bench_prompts(PolicyTokenizer.from_folder(model_folder), GROUPS * (steps + WARM_UP_STEPS))
        self.prompt_tokens = sorted({len(prompt.token_ids) for prompt in prompts})
        self._job = {
            "model_folder": str(model_folder),
            "threads": threads,
            "steps": steps + WARM_UP_STEPS,
            "groups": GROUPS,
            "group": HEADLINE.group,
            "completion": HEADLINE.completion,
            "micro_batch": HEADLINE.group,
            "prompts": [
                {"content": p.content, "token_ids": list(p.token_ids), "reference": p.reference} for p in prompts
            ],
        }

    def ours(self, turn: int) -> dict[str, Any]:
        """One process of ours.

        Raises:
            ServiceFailed: It failed.
        """
        return self._run("ours", turn, [sys.executable, "-m", "tersely.trainer.benching.whole_step"])

    def peer(self, turn: int, python: Path) -> dict[str, Any]:
        """One process of the peer.

        Raises:
            ServiceFailed: It failed, or did not make as many tokens as asked.
        """
        result = self._run("trl", turn, [str(python), str(_DRIVER)])
        if result["completion_tokens"] != [HEADLINE.completion]:
            raise ServiceFailed(f"TRL made completions of {result['completion_tokens']} tokens.", "Use another model.")
        return result

    def _run(self, name: str, turn: int, command: list[str]) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(prefix="tersely-bench-") as folder:
            job, result, log = (Path(folder) / file for file in ("job.json", "result.json", "log"))
            job.write_text(json.dumps(self._job))
            environment = {**os.environ, **waiting_settings(), "OMP_NUM_THREADS": str(self._job["threads"])}
            load = os.getloadavg()[0]
            with log.open("wb") as output:
                done = subprocess.run(
                    [*command, str(job), str(result)], stdout=output, stderr=output, env=environment, check=False
                )
            if done.returncode != 0:
                tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
                raise ServiceFailed(f"The process of {name} ended with {done.returncode}:\n{tail}", "Mend that first.")
            read: dict[str, Any] = json.loads(result.read_text())
        counted = statistics.median(read["step_seconds"][WARM_UP_STEPS:])
        gib = read["peak_memory_bytes"] / (1 << 30)
        self._progress(f"turn {turn + 1}: {name} {counted:.2f} s a step, peak memory {gib:.2f} GiB")
        return {**read, "seconds": counted, "load_before": round(load, 2)}
