"""Finds what a service's package offers to the command line beside the service itself: `plan`, `replay`, ..."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any, cast

from tersely.errors import PackageMissing

GROUP = "tersely.tools"


def load_tool(name: str, *, extra: str = "trainer") -> Callable[..., Any]:
    """The function behind a command, by its entry point.

    Args:
        name: As in the entry points of the group `tersely.tools`.
        extra: What to install when it, or a package it imports, is not there.

    Raises:
        PackageMissing.
    """
    # Before torch is loaded: threads that spin long while they wait starve the rest of the machine, and each other.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    way_out = f"Install it with: pip install 'tersely[{extra}]'"
    found = [entry for entry in entry_points(group=GROUP) if entry.name == name]
    if not found:
        raise PackageMissing(f"No installed package provides the command {name}.", way_out)
    try:
        return cast(Callable[..., Any], found[0].load())
    except ModuleNotFoundError as error:
        raise PackageMissing(
            f"{name} needs the Python package {error.name}, which is not installed.", way_out
        ) from None
