"""Where a model runs and with how many threads."""

from __future__ import annotations

import os

import torch

from tersely.errors import ConfigValue


def choose_device(wanted: str, setting: str) -> torch.device:
    """The device by name; `auto` takes cuda, else mps, else cpu.

    Args:
        wanted: auto, cpu, cuda or mps.
        setting: Key of the recipe that says so, for the message.

    Raises:
        ConfigValue: if the named device is not there.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        wanted = next(name for name, available in there.items() if available)
    if not there.get(wanted, False):
        raise ConfigValue(
            f"{setting} is {wanted}, which torch does not find here.",
            f"Set {setting} to one of {', '.join(name for name, available in there.items() if available)}, or to auto.",
        )
    return torch.device(wanted)


def available_cores() -> int:
    """Cores that this process may use, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_threads(threads: int | None) -> int:
    """Sets torch's CPU threads; none: one per core that this process may use. Returns the number.

    Sums are split by threads: results are byte-identical only between runs with the same number.
    """
    number = threads or available_cores()
    torch.set_num_threads(number)
    return number
