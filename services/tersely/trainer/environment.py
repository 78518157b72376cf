"""What the last bits of a training step depend on beside its inputs: for the log, and for people."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib import metadata

import torch

_PACKAGES = ("torch", "transformers", "tersely")


def environment_facts(device: str, threads: int, ranks: int = 1) -> dict[str, str]:
    """Facts of this process.

    Args:
        device: Where the learner runs.
        threads: Its CPU threads.
        ranks: Processes that it is made of.
    """
    name = torch.cuda.get_device_name() if device.startswith("cuda") else torch.backends.cpu.get_cpu_capability()
    return {
        **{package: metadata.version(package) for package in _PACKAGES},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "processor": name,
        "device": device,
        "threads": str(threads),
        "ranks": str(ranks),
    }


def differences(logged: Mapping[str, str], here: Mapping[str, str]) -> list[str]:
    """Each fact that a log and this process state differently, as `name: logged, here ...`."""
    return [
        f"{name}: {logged[name]} in the log, {here[name]} here"
        for name in logged
        if name in here and logged[name] != here[name]
    ]
