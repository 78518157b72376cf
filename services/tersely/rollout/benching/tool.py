"""All of `tersely bench rollout`: what is measured, in which order, and the figures that come of it."""

from __future__ import annotations

import os
import platform
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path
from typing import Any

from tersely.models.device import set_threads
from tersely.models.locate import locate_model
from tersely.models.tokenizer import PolicyTokenizer
from tersely.rollout.benching.child import Child
from tersely.rollout.benching.origin import commit
from tersely.rollout.benching.prompts import exact_prompts, whole_prompts
from tersely.rollout.benching.sides import GENERATE

GROUPS, SIZE, PROMPT, LIMIT = 2, 8, 256, 64
_TURNS = 3
_LOOKUP_TOKENS = (3, 7)
_LOOKUP_PROMPTS = 4
_DOCUMENT_TOKENS = 220
_QUIET_LOAD = 0.7
_MODULE = "tersely.rollout.benching.sides"
_WAITING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")

Progress = Callable[[str], None]


def run_bench_rollout(
    *, model: str, turns: int | None, threads: int | None, lookup: bool, progress: Progress
) -> dict[str, Any]:
    """Measures the engines beside each other; nothing else should run on the machine.

    Args:
        model: Folder, hub id or built-in name.
        turns: Times each side generates; none: 3.
        threads: CPU threads on all sides; none: one per core.
        lookup: Measure look-up as well.
        progress: Told of each measurement.

    Returns:
        `tokens_per_second` per side (medians over the turns; None: not measured), `ratio_over_generate` (median over
        the turns), `prefill_tokens_per_prompt_token`, `lookup_speedup` (of the best draft length; None: not measured),
        and under `details` everything that they come from.

    Raises:
        ServiceFailed: A measured process failed.
    """
    load = os.getloadavg()[0]
    if load > _QUIET_LOAD:
        progress(
            f"warning: the load average is {load:.2f}: other programs are at work, and rates and ratios will be off;"
            f" measure when it is below {_QUIET_LOAD}"
        )
    folder, number = locate_model(model), set_threads(threads)
    tokenizer = PolicyTokenizer.from_folder(folder)
    sides = _Sides(folder, number)
    rates, prefilled, skipped = _rates(sides, exact_prompts(tokenizer, GROUPS, PROMPT), turns or _TURNS, progress)
    found = _lookup(sides, tokenizer, turns or _TURNS, progress) if lookup else None
    ratios = [ours["rate"] / theirs["rate"] for ours, theirs in zip(rates["torch"], rates[GENERATE], strict=True)]
    names = ("torch", GENERATE, "vllm")
    return {
        "tokens_per_second": {
            name: round(statistics.median(turn["rate"] for turn in rates[name]), 1) if rates.get(name) else None
            for name in names
        },
        "ratio_over_generate": round(statistics.median(ratios), 2),
        "prefill_tokens_per_prompt_token": prefilled and round(prefilled / (GROUPS * PROMPT), 3),
        "lookup_speedup": found and max(found["sampled"]["speedup"].values()),
        "details": {
            "model": model,
            "commit": commit(),
            "sequences": GROUPS * SIZE,
            "prompt_tokens": PROMPT,
            "completion_tokens": LIMIT,
            "threads": number,
            "environment": sides.environment,
            "load_before": round(load, 2),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "versions": {name: metadata.version(name) for name in ("tersely", "torch", "transformers")},
            "not_measured": skipped,
            "turns": rates,
            "lookup": found,
        },
    }


class _Sides:
    """Starts the measured processes, all with the same threads that wait in the same way."""

    def __init__(self, folder: Path, threads: int) -> None:
        self._folder = folder
        self._threads = threads
        given = {name: os.environ[name] for name in _WAITING if name in os.environ}
        self.environment = given or {"GOMP_SPINCOUNT": "1000"}

    def start(self, name: str, *, python: Path | None = None, lookup_tokens: int = 0) -> Child:
        words = [name, str(self._folder), str(self._threads), str(lookup_tokens)]
        environment = {**self.environment, "OMP_NUM_THREADS": str(self._threads)}
        title = f"{name} with look-up of {lookup_tokens}" if lookup_tokens else name
        return Child(title, [str(python or sys.executable), "-m", _MODULE, *words], environment)


def find_vllm() -> tuple[Path | None, str]:
    """Python of vLLM's environment, or none and why: $TERSELY_VLLM_ENV, or `.venv-vllm` here or beside ours."""
    named = os.environ.get("TERSELY_VLLM_ENV")
    here = (Path.cwd() / ".venv-vllm", Path(sys.prefix).parent / ".venv-vllm")
    places = [Path(named)] if named else list(dict.fromkeys(here))
    for place in places:
        python = place / "bin" / "python"
        if python.exists():
            return python, ""
    return None, f"no vLLM environment at {' or '.join(map(str, places))}; `make setup-vllm` makes one"


def _rates(
    sides: _Sides, prompts: Sequence[Sequence[int]], turns: int, progress: Progress
) -> tuple[dict[str, list[dict[str, Any]]], int | None, dict[str, str]]:
    job = {"prompts": prompts, "size": SIZE, "limit": LIMIT, "stop": [], "greedy": False}
    skipped: dict[str, str] = {}
    python, why = find_vllm()
    if python is None:
        skipped["vllm"] = why
        progress(f"vllm is not measured: {why}")
    with ExitStack() as stack:
        children = [stack.enter_context(sides.start(name)) for name in ("torch", GENERATE)]
        if python is not None:
            children.append(stack.enter_context(sides.start("vllm", python=python)))
        for child in children:
            child.ask({**job, "limit": 8, "seed": 0})  # what is made once is made here
        prefilled: int | None = children[0].ask({**job, "do": "prefill", "seed": 0})["tokens"]
        found: dict[str, list[dict[str, Any]]] = {child.name: [] for child in children}
        for turn in range(turns):
            for child in children:
                found[child.name].append(_timed(child, {**job, "seed": turn + 1}))
                progress(f"turn {turn + 1}/{turns}: {child.name} {found[child.name][-1]['rate']:.1f} tokens/s")
    return found, prefilled, skipped


def _lookup(sides: _Sides, tokenizer: PolicyTokenizer, turns: int, progress: Progress) -> dict[str, Any]:
    """Whole summaries with their own ends, each draft length against none, in turns.

    Returns:
        For `sampled` and `greedy` completions: per draft length the median `speedup` over turns, `same_tokens` (share
        of turns whose ids were all the same as without), and the turns.
    """
    prompts = whole_prompts(tokenizer, _LOOKUP_PROMPTS, _DOCUMENT_TOKENS)
    job = {"prompts": prompts, "size": SIZE, "limit": 2 * LIMIT, "stop": sorted(tokenizer.stop_token_ids)}
    result: dict[str, Any] = {}
    with ExitStack() as stack:
        children = {n: stack.enter_context(sides.start("torch", lookup_tokens=n)) for n in (0, *_LOOKUP_TOKENS)}
        for child in children.values():
            child.ask({**job, "limit": 8, "greedy": False, "seed": 0})
        for kind, greedy in (("sampled", False), ("greedy", True)):
            found: dict[int, list[dict[str, Any]]] = {n: [] for n in children}
            for turn in range(turns):
                for drafted, child in children.items():
                    found[drafted].append(_timed(child, {**job, "greedy": greedy, "seed": turn + 1}))
                    progress(f"{kind}, {child.name}: {found[drafted][-1]['rate']:.1f} tokens/s")
            result[kind] = {
                "speedup": {str(n): _speedup(found[n], found[0]) for n in _LOOKUP_TOKENS},
                "same_tokens": {str(n): _same(found[n], found[0]) for n in _LOOKUP_TOKENS},
                "turns": {str(n): turns for n, turns in found.items()},
            }
    return result


def _timed(child: Child, job: Mapping[str, Any]) -> dict[str, Any]:
    answer = child.ask(job)
    return {**answer, "seconds": round(answer["seconds"], 3), "rate": answer["tokens"] / answer["seconds"]}


def _speedup(with_it: Sequence[Mapping[str, Any]], without: Sequence[Mapping[str, Any]]) -> float:
    ratios = [float(on["rate"]) / float(off["rate"]) for on, off in zip(with_it, without, strict=True)]
    return round(statistics.median(ratios), 3)


def _same(with_it: Sequence[Mapping[str, Any]], without: Sequence[Mapping[str, Any]]) -> float:
    same = [bool(on["ids_sha256"] == off["ids_sha256"]) for on, off in zip(with_it, without, strict=True)]
    return sum(same) / len(same)
