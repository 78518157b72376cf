"""Where the learner runs and with how many threads."""

from __future__ import annotations

import os

import torch

from tersely.errors import ConfigValue


def choose_device(wanted: str) -> torch.device:
    """The device by name; `auto` takes cuda, else mps, else cpu.

    Raises:
        ConfigValue: if the named device is not there.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        wanted = next(name for name, available in there.items() if available)
    if not there.get(wanted, False):
        raise ConfigValue(
            f"learner.device is {wanted}, which torch does not find here.",
            f"Set learner.device to one of {', '.join(name for name, available in there.items() if available)}.",
        )
    return torch.device(wanted)


def set_threads(threads: int | None) -> int:
    """Set torch's CPU threads; none: one per core that this process may use. Returns the number.

    Sums are split by threads: results are byte-identical only between runs with the same number.
    """
    if threads is None:
        threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(threads)
    return threads
