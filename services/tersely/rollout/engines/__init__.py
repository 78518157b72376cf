"""Engines: what turns prompt groups into sampled completions. One protocol (`base`), one contract suite for all."""

from __future__ import annotations

from importlib.metadata import entry_points

from tersely.errors import ConfigValue, PackageMissing
from tersely.rollout.engines.base import Capabilities, Engine, EngineSettings, GeneratedGroup, generate

__all__ = ["Capabilities", "Engine", "EngineSettings", "GeneratedGroup", "generate", "open_engine"]

_OWN_ENVIRONMENT = {
    "vllm": "vLLM has an environment of its own: run `make setup-vllm`, then start the worker from there: "
    "`.venv-vllm/bin/tersely rollout --trainer HOST:PORT --engine vllm`."
}


def open_engine(name: str, settings: EngineSettings) -> Engine:
    """Makes the engine that an installed package registers under `tersely.engines`; it holds no model yet.

    Raises:
        ConfigValue: No package registers that name.
        PackageMissing: The engine's own dependencies are not installed.
    """
    known = {point.name: point for point in entry_points(group="tersely.engines")}
    if name not in known:
        raise ConfigValue(f"There is no rollout engine {name!r}.", f"Use one of: {', '.join(sorted(known))}.")
    try:
        engine: Engine = known[name].load()(settings)
    except ModuleNotFoundError as error:
        way_out = _OWN_ENVIRONMENT.get(name, f"Install it with: pip install 'tersely[rollout-{name}]'")
        raise PackageMissing(
            f"The rollout engine {name!r} needs the Python package {error.name!r}.", way_out
        ) from error
    return engine
