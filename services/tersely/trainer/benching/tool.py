"""All of `tersely bench learner`: what is measured, in which order, and the figures that come of it."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from tersely.models.device import set_threads
from tersely.models.locate import locate_model
from tersely.trainer.benching.learning import LearnerBench, Timing
from tersely.trainer.benching.machine import machine_facts
from tersely.trainer.benching.shapes import GRID, HEADLINE, LARGE
from tersely.trainer.benching.turns import Turns, find_peer, waiting_settings

_TURNS = 3
_QUICK_TURNS = {HEADLINE: 2, LARGE: 1}
_STEPS = 2
_QUICK_STEPS = 1
_QUIET_LOAD = 0.7


def run_bench_learner(
    *, quick: bool, model: str, turns: int | None, threads: int | None, progress: Callable[[str], None]
) -> dict[str, Any]:
    """Measures; nothing else should run on the machine.

    Args:
        quick: Two shapes, few turns, without the peer.
        model: Folder, hub id or built-in name.
        turns: Times each measurement is repeated; none: 3, or fewer with `quick`.
        threads: CPU threads on all sides; none: one per core.
        progress: Told of each measurement.

    Returns:
        `shared_over_padded` per shape, `gradient_difference`, `over_trl`, `peak_memory_over_trl` (the last two None
        with `quick`) and under `details` everything that they come from.

    Raises:
        PackageMissing: The peer's environment is not there.
        ServiceFailed: A measured process failed.
    """
    peer = None if quick else find_peer()
    load = os.getloadavg()[0]
    if load > _QUIET_LOAD:
        progress(
            f"warning: the load average is {load:.2f}: other programs are at work, and seconds and ratios will be off;"
            f" measure when it is below {_QUIET_LOAD}"
        )
    folder = locate_model(model)
    number = set_threads(threads)
    progress(f"{model}, {number} threads" + (", without TRL" if quick else ""))
    learner = _learner(folder, quick, turns, progress)
    steps = Turns(folder, number, _QUICK_STEPS if quick else _STEPS, progress)
    ours, trl = [], []
    for turn in range(turns or (1 if quick else _TURNS)):
        ours.append(steps.ours(turn))
        if peer is not None:
            trl.append(steps.peer(turn, peer))
    headline = learner[HEADLINE.name]
    return {
        "shared_over_padded": {name: _rounded(timing.ratio("padded")) for name, timing in learner.items()},
        "gradient_difference": headline.differences["padded"],
        "over_trl": _rounded(_over("seconds", trl, ours)),
        "peak_memory_over_trl": _rounded(_over("peak_memory_bytes", ours, trl)),
        "details": {
            "model": model,
            "threads": number,
            "environment": waiting_settings(),
            "load_before": round(load, 2),
            "machine": machine_facts(),
            "versions": {name: metadata.version(name) for name in ("tersely", "torch", "transformers")},
            "learner": {name: asdict(timing) for name, timing in learner.items()},
            "shared_over_plain": {HEADLINE.name: _rounded(headline.ratio("plain"))},
            "whole_step": {
                "prompt_tokens": steps.prompt_tokens,
                "completions_per_step": HEADLINE.prompts * HEADLINE.group,
                "completion_tokens": HEADLINE.completion,
                "ours": ours,
                "trl": trl,
                "completions_per_second": {
                    name: _rounded(HEADLINE.prompts * HEADLINE.group / _median(results), 3) if results else None
                    for name, results in (("ours", ours), ("trl", trl))
                },
            },
        },
    }


def _learner(folder: Path, quick: bool, turns: int | None, progress: Callable[[str], None]) -> dict[str, Timing]:
    """The shared forward against the padded ones; the model is gone when it returns."""
    bench = LearnerBench(folder)
    found = {}
    for shape in _QUICK_TURNS if quick else GRID:
        headline = shape == HEADLINE
        found[shape.name] = bench.measure(
            shape,
            ("plain", "padded", "shared") if headline and not quick else ("padded", "shared"),
            turns or (_QUICK_TURNS[shape] if quick else _TURNS),
            compare=headline,
            progress=progress,
        )
    return found


def _over(key: str, upper: list[dict[str, Any]], lower: list[dict[str, Any]]) -> float | None:
    """Median over turns of upper / lower; None without both."""
    ratios = [up[key] / low[key] for up, low in zip(upper, lower, strict=False)]
    return statistics.median(ratios) if ratios else None


def _median(results: list[dict[str, Any]]) -> float:
    return float(statistics.median(result["seconds"] for result in results))


def _rounded(value: float | None, digits: int = 2) -> float | None:
    return None if value is None else round(value, digits)
