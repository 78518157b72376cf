"""From the recipe's `[rewards.*]` tables to reward objects, found by entry point."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points

from tersely.config.plugins import refuse_unknown_options
from tersely.config.schema import RewardSection
from tersely.errors import RewardFailed, RewardUnknown, TerselyError
from tersely.scorer.rewards.base import Reward, nearest

ENTRY_POINT_GROUP = "tersely.rewards"
EVALUATION_REWARDS = ("length", "rouge_l")


def installed_rewards(found: Iterable[EntryPoint] | None = None) -> dict[str, EntryPoint]:
    """Entry points of all rewards by name.

    Args:
        found: Entry points to look at; those of the installed packages by default.

    Raises:
        RewardFailed: If two packages provide different rewards under one name.
    """
    rewards: dict[str, EntryPoint] = {}
    for point in entry_points(group=ENTRY_POINT_GROUP) if found is None else found:
        other = rewards.setdefault(point.name, point)
        if other.value != point.value:
            raise RewardFailed(
                f"Two packages provide a reward named {point.name}: {other.value} and {point.value}.",
                "Uninstall one of them.",
            )
    return rewards


def check_installed(names: Iterable[str]) -> None:
    """Refuses names that no installed package provides, without loading anything; raises RewardUnknown."""
    points = installed_rewards()
    for name in names:
        if name not in points:
            raise RewardUnknown(f"No installed package provides a reward named {name!r}.", nearest(name, points))


def build_reward(
    name: str, options: Mapping[str, object] | None = None, installed: Mapping[str, EntryPoint] | None = None
) -> Reward:
    """Loads and sets up one reward.

    Args:
        name: Name in the recipe.
        options: Options of its table, without `weight`.
        installed: Entry points by name; those of the installed packages by default.

    Raises:
        RewardUnknown: If no installed package provides it.
        ConfigUnknownKey: For an unknown option; the way out names the nearest.
        ConfigValue: For a value that the reward refuses.
        RewardFailed: If it can't be imported or set up.
    """
    points = installed_rewards() if installed is None else installed
    if name not in points:
        raise RewardUnknown(f"No installed package provides a reward named {name!r}.", nearest(name, points))
    try:
        cls = points[name].load()
    except ImportError as error:
        missing = f"the package {error.name} is missing" if isinstance(error, ModuleNotFoundError) else str(error)
        raise RewardFailed(
            f"The reward {name} can't be loaded: {missing}.", "Install it: pip install 'tersely[scorer]'."
        ) from None
    except Exception as error:
        raise RewardFailed(
            f"The reward {name} can't be loaded: {type(error).__name__}: {error}.", "Ask who wrote that reward."
        ) from error
    given = dict(options or {})
    if callable(cls):
        refuse_unknown_options(name, cls, given)
    try:
        reward = cls(**given)
    except TerselyError:
        raise
    except Exception as error:
        raise RewardFailed(
            f"The reward {name} can't be set up: {type(error).__name__}: {error}.",
            f"Check the options in [rewards.{name}] and what the reward needs installed.",
        ) from error
    if not isinstance(reward, Reward) or reward.name != name:
        raise RewardFailed(
            f"{points[name].value} does not fulfil the reward protocol or is not named {name}.",
            "See docs/rewards.md for what a reward must have.",
        )
    return reward


def build_rewards(sections: Mapping[str, RewardSection]) -> list[Reward]:
    """The rewards of a recipe, in its order; raises as `build_reward` does."""
    installed = installed_rewards()
    return [build_reward(name, section.options, installed) for name, section in sections.items()]


def evaluation_rewards(trained: Iterable[Reward]) -> list[Reward]:
    """Rewards of evaluation groups: those trained on, then `length` and `rouge_l` where missing.

    `rouge_l` is always the F1 here, whatever measure is trained on: reports of different recipes stay comparable.
    """
    rewards = [build_reward("rouge_l") if reward.name == "rouge_l" else reward for reward in trained]
    names = {reward.name for reward in rewards}
    return rewards + [build_reward(name) for name in EVALUATION_REWARDS if name not in names]
