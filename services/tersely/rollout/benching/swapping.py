"""How long sampling stands still for new weights: between two steps of the engine, put in and proved by a probe."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tersely.models.tokenizer import PolicyTokenizer
from tersely.rollout.benching.prompts import exact_prompts, requests
from tersely.rollout.engines import Engine, EngineSettings, open_engine
from tersely.rollout.engines.base import Stages, stage
from tersely.weights.receive import HeldWeights
from tersely.weights.snapshot import Snapshot
from tersely.weights.versions import read_version

_GROUPS, _SIZE, _PROMPT = 2, 8, 256
_STEPS_BETWEEN = 3
_PROBE_TOKENS = 32


def swap_pauses(
    versions: Sequence[Path], model_folder: Path, count: int, *, engine: str = "torch", threads: int | None = None
) -> dict[str, Any]:
    """Swaps through versions, there and back, with a few steps of 2 x 8 sequences (prompt 256) between two swaps.

    A pause is the time in which no step runs: the swap from a second buffer that holds the checked weights already, and
    the log-probs of a probe of 32 tokens. Fetching and checking go on while the engine samples and are not in it, nor
    is laying the weights out for an engine that can do that beforehand (`stage`).

    Args:
        versions: Files of at least two versions; the first few are held in memory.
        model_folder: Config and tokenizer.
        count: Swaps to time of each kind.
        engine: As under `tersely.engines`.
        threads: CPU threads; none: one per core.

    Returns:
        `p95_ms`, `median_ms` and `most_ms` with nothing running (drain), the same as `inflight_...` with 16 sequences
        running (None where the engine can't) and as `unstaged_...` with nothing running and nothing laid out beforehand
        (None where the engine never does), `probe_median_ms`, `stage_median_ms` and `count`.
    """
    held = [_held(read_version(path)) for path in versions[:3]]
    made = open_engine(engine, EngineSettings(threads=threads, batch_sequences=_GROUPS * _SIZE))
    made.load(model_folder, held[0].label, held[0].tensors())
    prompts = exact_prompts(PolicyTokenizer.from_folder(model_folder), _GROUPS, _PROMPT)
    order = itertools.cycle([*held[1:], *held[-2::-1]])
    probe = prompts[0][:_PROBE_TOKENS]
    probes: list[float] = []
    stagings: list[float] = []
    stages = isinstance(made, Stages)
    seeds = itertools.count()

    def pause(*, drained: bool = True, staged: bool = True) -> float:
        """One swap after a few steps of new groups."""
        groups = requests(prompts, size=_SIZE, limit=4 * _STEPS_BETWEEN, seed=next(seeds))
        for group in groups:
            made.admit(group)
        for _ in range(_STEPS_BETWEEN):
            made.step()
        ending = [group.group_id for group in groups]
        new = next(order)
        weights = new.tensors()
        if staged:
            began = time.perf_counter()
            stage(made, weights)
            stagings.append(time.perf_counter() - began)
        if drained:
            _cancel(made, ending)
        began = time.perf_counter()
        made.swap(new.label, weights)
        swapped = time.perf_counter()
        made.score(probe)
        ended = time.perf_counter()
        probes.append(ended - swapped)
        if made.running:
            made.step()
        _cancel(made, ending)
        return ended - began

    drain = [pause() for _ in range(count)]
    running = [pause(drained=False) for _ in range(count)] if made.capabilities().in_flight else []
    unstaged = [pause(staged=False) for _ in range(count)] if stages else []
    return {
        "engine": engine,
        "count": count,
        **_figures(drain, ""),
        **_figures(running, "inflight_"),
        **_figures(unstaged, "unstaged_"),
        "probe_median_ms": round(1000 * float(np.median(probes)), 1),
        "stage_median_ms": round(1000 * float(np.median(stagings)), 1) if stages else None,
    }


def _cancel(engine: Engine, group_ids: Sequence[str]) -> None:
    for group_id in group_ids:
        engine.cancel(group_id)


def _figures(pauses: Sequence[float], prefix: str) -> dict[str, float | None]:
    if not pauses:
        return {f"{prefix}{name}_ms": None for name in ("p95", "median", "most")}
    milliseconds = 1000 * np.array(pauses)
    return {
        f"{prefix}p95_ms": round(float(np.percentile(milliseconds, 95)), 1),
        f"{prefix}median_ms": round(float(np.median(milliseconds)), 1),
        f"{prefix}most_ms": round(float(milliseconds.max()), 1),
    }


def _held(snapshot: Snapshot) -> HeldWeights:
    return HeldWeights(snapshot.label, snapshot.manifest, bytearray(snapshot.payload))
