"""All of `tersely bench weights`: versions of real runs, deltas between them, and the pause when they are swapped."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tersely.errors import TerselyError
from tersely.models.locate import locate_model
from tersely.rollout.benching.origin import commit
from tersely.rollout.benching.real_run import record_run
from tersely.rollout.benching.swapping import swap_pauses
from tersely.weights.measure import measure
from tersely.weights.versions import find_versions, origin_of

Progress = Callable[[str], None]


def run_bench_weights(
    *,
    checkpoints: Sequence[Path],
    model: str,
    learning_rates: Sequence[float],
    steps: int,
    keep: Path | None,
    swaps: int,
    threads: int | None,
    progress: Progress,
) -> dict[str, Any]:
    """Measures deltas and swaps of given versions, or of runs that it makes itself, one per learning rate.

    Args:
        checkpoints: Run directories, folders of checkpoints or of recorded versions; empty: own runs.
        model: Of own runs: folder, hub id or built-in name.
        learning_rates: Of own runs.
        steps: Of own runs.
        keep: Where versions of own runs stay; none: nowhere.
        swaps: Swaps to time; 0: none.
        threads: Threads of the coder; none: half of the cores.
        progress: Told of each version and pair.

    Returns:
        Per `MODEL@LR` the figures of `tersely.weights.measure`, `swap_pause_p95_ms` and `swap` (None where the model's
        config can't be found or `swaps` is 0), `commit` (of the code that measured) and `own_run`.

    Raises:
        CheckpointInvalid: Versions can't be read, or are fewer than two.
        ServiceFailed: An own run failed.
    """
    load = round(os.getloadavg()[0], 2)
    found: dict[str, Any] = {}
    with ExitStack() as stack:
        folders = list(checkpoints)
        base = keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tersely-versions-")))
        for rate in learning_rates if not folders else ():
            folder = base / f"{Path(model).name}@{rate:g}"
            record_run(folder, model=model, learning_rate=rate, steps=steps, progress=progress)
            folders.append(folder)
        for folder in folders:
            for title, figures in measure(folder, threads, progress).items():
                if swaps:
                    progress(f"{title}: {swaps} swaps of each kind")
                swap = _swaps(folder, swaps, progress)
                found[_free(title, found)] = {
                    **figures,
                    "swap_pause_p95_ms": swap and swap["p95_ms"],
                    "swap": swap,
                    "commit": commit(),
                    "own_run": not checkpoints,
                    "load_before": load,
                }
    return found


def _swaps(folder: Path, count: int, progress: Progress) -> dict[str, Any] | None:
    versions = find_versions(folder)
    origin = origin_of(versions[0])
    if not count or origin is None:
        return None
    try:
        return swap_pauses(versions, locate_model(origin.model), count)
    except TerselyError as error:
        progress(f"the swap is not measured: {error}")
        return None


def _free(title: str, taken: dict[str, Any]) -> str:
    """The title, numbered where another run had the same."""
    return title if title not in taken else f"{title} ({len(taken) + 1})"
