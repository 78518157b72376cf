"""Rewards: the protocol that plugins fulfil, and the built-in ones."""

from tersely.scorer.rewards.base import Reward, RewardInput

__all__ = ["Reward", "RewardInput"]
