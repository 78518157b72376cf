"""What a recipe says to a plugin, held against what the plugin takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable

from tersely.config.nearest import nearest
from tersely.errors import ConfigUnknownKey


def refuse_unknown_options(reward: str, factory: Callable[..., object], options: Iterable[str]) -> None:
    """Raises ConfigUnknownKey for an option of `[rewards.NAME]` that the reward's constructor does not take."""
    parameters = inspect.signature(factory).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    known = [parameter.name for parameter in parameters if parameter.kind is not parameter.POSITIONAL_ONLY]
    for option in options:
        if option not in known:
            raise ConfigUnknownKey(
                f"rewards.{reward}.{option}: the reward has no such option.", nearest(option, [*known, "weight"])
            )
