"""The shapes that are timed, and random tokens of each."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

import torch

_NAME = re.compile(r"P(\d+)C(\d+)G(\d+)")


@dataclass(frozen=True, slots=True)
class Shape:
    """One training batch: `prompts` groups of `group` completions.

    Attributes:
        prompt: Tokens of each prompt.
        completion: Tokens of each completion.
        group: Completions per prompt.
        prompts: Groups.
    """

    prompt: int
    completion: int
    group: int
    prompts: int = 2

    @property
    def name(self) -> str:
        """E.g. `P256C64G8`; the number of prompts is not part of it."""
        return f"P{self.prompt}C{self.completion}G{self.group}"

    @classmethod
    def parse(cls, name: str) -> Shape:
        """From a name.

        Raises:
            ValueError: It is not of the form P256C64G8, or a number is 0.
        """
        match = _NAME.fullmatch(name)
        if match is None or "0" in match.groups():
            raise ValueError(f"{name!r} is no shape like P256C64G8")
        return cls(*(int(number) for number in match.groups()))


HEADLINE = Shape(256, 64, 8)
LARGE = Shape(512, 64, 16)
GRID = (HEADLINE, Shape(256, 64, 16), Shape(512, 64, 8), LARGE)
"""All shapes; --quick takes the first and the last."""


class Batch(NamedTuple):
    """Random tokens of a shape, and the weight of each completion in the loss.

    Attributes:
        prompts: Ids, [prompts, prompt].
        completions: Ids, [prompts, group, completion].
        weights: fp32, [prompts, group].
    """

    prompts: torch.Tensor
    completions: torch.Tensor
    weights: torch.Tensor


def random_batch(shape: Shape, vocabulary: int, seed: int = 0) -> Batch:
    """The same batch for the same arguments."""
    generator = torch.Generator().manual_seed(seed)
    return Batch(
        torch.randint(0, vocabulary, (shape.prompts, shape.prompt), generator=generator),
        torch.randint(0, vocabulary, (shape.prompts, shape.group, shape.completion), generator=generator),
        torch.randn(shape.prompts, shape.group, generator=generator),
    )
