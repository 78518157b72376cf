"""Whether this process was started as one of several; reads the environment alone."""

from __future__ import annotations

import os
from collections.abc import Mapping

from tersely.errors import ConfigValue

_TORCHRUN = "Start with torchrun (docs/several-gpus.md), or unset WORLD_SIZE to train with one process."


def world_size(environment: Mapping[str, str] = os.environ) -> int:
    """Processes of the learner, by what torchrun sets; 1 without it.

    Raises:
        ConfigValue: if the variables don't fit together.
    """
    size = _number(environment, "WORLD_SIZE", 1)
    if size < 1:
        raise ConfigValue(f"WORLD_SIZE is {size}.", _TORCHRUN)
    if size > 1:
        missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in environment]
        if missing:
            raise ConfigValue(f"WORLD_SIZE is {size}, but {', '.join(missing)} is not set.", _TORCHRUN)
        if not 0 <= _number(environment, "RANK", 0) < size:
            raise ConfigValue(f"RANK is {environment['RANK']} of {size}.", _TORCHRUN)
    return size


def local_rank(environment: Mapping[str, str] = os.environ) -> int:
    """Number of this process on its box, from 0."""
    return _number(environment, "LOCAL_RANK", 0)


def ranks_on_this_box(environment: Mapping[str, str] = os.environ) -> int:
    """Processes that share the cores of this box."""
    return max(1, _number(environment, "LOCAL_WORLD_SIZE", 1))


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    value = environment.get(name, str(default))
    try:
        return int(value)
    except ValueError:
        raise ConfigValue(f"{name} is {value!r}, not a number.", _TORCHRUN) from None
