"""A short real run whose versions are written down one by one: `tersely up` with all its processes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tersely.errors import ServiceFailed
from tersely.weights.record import record_versions

_RECIPE = """# Two groups of eight summaries a step. chrF against the source sees to it that any policy has a signal.
[run]
groups_per_step = 2
group_size = 8
checkpoint_every = 100000
keep_checkpoints = 1

[data]
source = "aclsum"
max_document_tokens = 128

[length]
target_tokens = 24

[rewards.length]

[rewards.chrf]
against = "document"

[learner]
recompute = true

[rpc]
snapshots = 2

[evaluation]
prompts = 0
"""
_START_SECONDS = 300.0
_LINES_SHOWN = 15


def record_run(
    folder: Path, *, model: str, learning_rate: float, steps: int, progress: Callable[[str], None]
) -> list[Path]:
    """Trains and records.

    Args:
        folder: For the versions and recipe.json; made if missing.
        model: Folder, hub id or built-in name.
        learning_rate: Of AdamW, constant.
        steps: Versions after the initial one.
        progress: Told of each version.

    Returns:
        The versions' files, oldest first.

    Raises:
        ServiceFailed: The run failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="tersely-bench-") as temporary:
        run_dir, recipe, log = (Path(temporary) / name for name in ("run", "recipe.toml", "log"))
        recipe.write_text(_RECIPE)
        sets = {"model.name": model, "learner.learning_rate": f"{learning_rate!r}", "run.steps": str(steps)}
        words = [word for key, value in sets.items() for word in ("--set", f"{key}={value}")]
        command = [sys.executable, "-m", "tersely.cli", "up", str(recipe), "--run-dir", str(run_dir), "--plain", *words]
        with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as run:
            try:
                facts = _facts(run_dir, run)
                record_versions(
                    facts["trainer_address"],
                    facts["run_id"],
                    folder,
                    steps,
                    alive=lambda: run.poll() is None,
                    progress=lambda line: progress(f"{model} at {learning_rate:g}: {line}"),
                )
                shutil.copy(run_dir / "recipe.json", folder / "recipe.json")
                run.wait()
            finally:
                if run.poll() is None:
                    run.terminate()
            if run.returncode != 0:
                raise _failure(log, run.returncode)
    return sorted(folder.glob("version-*.safetensors"))


def _facts(run_dir: Path, run: subprocess.Popen[bytes]) -> dict[str, str]:
    """run.json, as soon as the trainer has written it."""
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and run.poll() is None:
        if (run_dir / "run.json").is_file():
            facts: dict[str, str] = json.loads((run_dir / "run.json").read_text())
            return facts
        time.sleep(0.2)
    run.terminate()
    raise _failure(run_dir.parent / "log", run.wait())


def _failure(log: Path, code: int) -> ServiceFailed:
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-_LINES_SHOWN:])
    return ServiceFailed(f"The run to measure ended with {code}:\n{tail}", "Mend that first.")
