"""What this machine has: memory, and how fast it multiplies, reads and hashes."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
import torch

from tersely.models.cache import cache_folder
from tersely.models.device import available_cores
from tersely.models.linear import product
from tersely.telemetry.atomic import write_atomic
from tersely.trainer.planning.facts import ModelFacts

_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_MPS_SHARE = 0.75
"""Share of a Mac's memory that Metal gives to one process at most, roughly."""

_TRY_SECONDS = 0.4
_KEEP_SECONDS = 3600.0
_ROWS = {"cpu": 256, "cuda": 4096, "mps": 4096}
_LEAST_CYCLE_BYTES = 128 << 20
"""Weights to go round when decoding is imitated: more than a cache holds."""


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast a device works.

    Attributes:
        flops: Floating-point operations per second in large products.
        decode_bytes: Bytes of weights per second that a decoding step goes through.
        hash_bytes: Bytes per second of SHA-256, one core.
        basis: Where the figures are from, for people.
    """

    flops: float
    decode_bytes: float
    hash_bytes: float
    basis: str


_ASSUMED = {
    "cpu": (80e9, 10e9),  # the first per core
    "cuda": (150e12, 1.0e12),
    "mps": (6e12, 150e9),
}


def host_memory_bytes() -> int:
    """Memory of the machine, or of the container."""
    total = int(psutil.virtual_memory().total)
    for path in _CGROUP_LIMITS:
        try:
            text = path.read_text().strip()
        except OSError:
            continue
        if text.isdecimal():
            total = min(total, int(text))
    return total


def device_is_here(device: str) -> bool:
    """Whether torch finds a device."""
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    return there[device]


def device_memory_bytes(device: str) -> int | None:
    """Memory of an accelerator; None when it is not here."""
    if not device_is_here(device):
        return None
    if device == "cuda":
        return int(torch.cuda.get_device_properties(0).total_memory)
    return int(host_memory_bytes() * _MPS_SHARE) if device == "mps" else host_memory_bytes()


def assumed_speed(device: str, threads: int) -> Speed:
    """Round figures for a device that is not here, or not to be measured."""
    flops, read = _ASSUMED[device]
    return Speed(flops * (threads if device == "cpu" else 1), read, 1e9, f"assumed for {device}, not measured")


def measured_speed(facts: ModelFacts, device: str, threads: int, rows: int) -> Speed:
    """Speed by products of the model's shapes; about a second, then for an hour from the cache folder.

    Args:
        facts: Of the model.
        device: A device that is here.
        threads: CPU threads.
        rows: Sequences decoded together.
    """
    hidden, inner = facts.hidden, facts.intermediate
    machine = f"{platform.node()} {platform.processor()} {torch.__version__} {os.cpu_count()}"
    key = hashlib.sha256(f"{machine} {device} {threads} {rows} {hidden} {inner}".encode()).hexdigest()[:16]
    file = cache_folder() / "plan" / f"speed-{key}.json"
    known = _read_speed(file)
    if known is not None:
        return known
    speed = _measure(hidden, inner, device, threads, rows)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, json.dumps(asdict(speed)) + "\n")
    return speed


def _read_speed(file: Path) -> Speed | None:
    try:
        young = time.time() - file.stat().st_mtime < _KEEP_SECONDS
        return Speed(**json.loads(file.read_text())) if young else None
    except (OSError, ValueError, TypeError):
        return None


def _measure(hidden: int, inner: int, device: str, threads: int, rows: int) -> Speed:
    before = torch.get_num_threads()
    torch.set_num_threads(min(threads, available_cores()))
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    try:
        large = torch.ones(_ROWS[device], hidden, device=device, dtype=dtype)
        weight = torch.ones(inner, hidden, device=device, dtype=dtype)
        per_second = _rate(lambda: product(large, weight), device)
        copies = max(1, _LEAST_CYCLE_BYTES // weight.nbytes)
        weights = [weight] + [weight.clone() for _ in range(copies)]
        few = large[:rows].T.contiguous()

        turn = itertools.cycle(weights)
        # On an accelerator one product is too short to be timed alone.
        at_once = 1 if device == "cpu" else len(weights)

        def decode() -> None:
            for _ in range(at_once):
                torch.mm(next(turn), few)

        steps = _rate(decode, device)
    finally:
        torch.set_num_threads(before)
    data = bytes(4 << 20)
    hashes = _rate(lambda: hashlib.sha256(data).digest(), "cpu")
    name = platform.processor() or platform.machine() if device == "cpu" else device
    return Speed(
        flops=per_second * 2 * _ROWS[device] * hidden * inner,
        decode_bytes=steps * at_once * weight.nbytes,
        hash_bytes=hashes * len(data),
        basis=f"a second of products of this model's shapes on {name}, {threads} threads",
    )


def _rate(work: Callable[[], object], device: str) -> float:
    """Calls per second, by the fastest: other programs only ever make it slower."""
    _wait(work, device)
    best, calls, began = float("inf"), 0, time.perf_counter()
    while time.perf_counter() - began < _TRY_SECONDS or calls < 3:
        started = time.perf_counter()
        _wait(work, device)
        best, calls = min(best, time.perf_counter() - started), calls + 1
    return 1 / best


def _wait(work: Callable[[], object], device: str) -> None:
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()
