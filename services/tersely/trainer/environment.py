"""What the last bits of a training step depend on beside its inputs: for the log, and for people."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from importlib import metadata

import torch

from tersely.config.learner import LearnerSection

_PACKAGES = ("torch", "transformers", "tersely")
FITTED = ("recompute", "micro_batch_tokens", "logit_chunk_tokens", "shared_prompt")
"""Settings of the learner that fit it to a machine; they change how sums are rounded, not what is summed."""


def environment_facts(device: str, threads: int, learner: LearnerSection, ranks: int = 1) -> dict[str, str]:
    """Facts of this process.

    Args:
        device: Where the learner runs.
        threads: Its CPU threads.
        learner: Its settings; those that a resume may change are facts.
        ranks: Processes that it is made of.
    """
    shared = {"learner.parallel": learner.parallel} if ranks > 1 else {}
    name = torch.cuda.get_device_name() if device.startswith("cuda") else torch.backends.cpu.get_cpu_capability()
    return {
        **{package: metadata.version(package) for package in _PACKAGES},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "processor": name,
        "device": device,
        "threads": str(threads),
        "ranks": str(ranks),
        **{f"learner.{key}": json.dumps(getattr(learner, key)) for key in FITTED},
        **shared,
    }


def fitted(learner: LearnerSection, facts: Mapping[str, str]) -> LearnerSection:
    """Settings as the facts of a trainer have them, so far as they can be changed between steps; FITTED names them."""
    return learner.model_copy(
        update={key: json.loads(facts[f"learner.{key}"]) for key in FITTED if f"learner.{key}" in facts}
    )


def differences(logged: Mapping[str, str], here: Mapping[str, str]) -> list[str]:
    """Each fact that a log and this process state differently, as `name: logged, here ...`."""
    return [
        f"{name}: {logged[name]} in the log, {here[name]} here"
        for name in logged
        if name in here and logged[name] != here[name]
    ]
