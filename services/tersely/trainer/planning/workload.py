"""How much a step of a recipe does: lengths of prompts and completions, and how groups are cut into parts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from tersely.config import Recipe
from tersely.data.prompts import prepare_prompt
from tersely.data.records import Record, load_records
from tersely.errors import DownloadFailed, HubUnreachable, PackageMissing
from tersely.models.tokenizer import PolicyTokenizer
from tersely.trainer.micro_batches import group_parts
from tersely.trainer.planning.facts import ModelFacts

_MOST_PROMPTS_READ = 400


@dataclass(frozen=True, slots=True)
class Prompts:
    """Lengths of a recipe's prompts, in tokens.

    Attributes:
        longest: Of those looked at.
        mean: Of those looked at.
        looked_at: How many; 0: the data could not be reached, so both are the most that the recipe allows.
    """

    longest: int
    mean: float
    looked_at: int


@dataclass(frozen=True, slots=True)
class Part:
    """Rows that are forwarded and backwarded together.

    Attributes:
        rows: How many.
        width: Positions of each that are forwarded.
        context: Positions of the prompt that they look back on and that ran before; 0 where it is part of the rows.
        tokens: Positions with logits.
    """

    rows: int
    width: int
    context: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Workload:
    """A step of a recipe with a model.

    Attributes:
        prompts: Their lengths.
        shared: Whether a group's prompt runs once.
        padded_reason: Why not; none if it does.
        group_size: Completions per prompt.
        groups: Groups per step.
        longest_completion: Most sampled tokens of a completion.
        typical_completion: Tokens taken as usual for the time: the target and the stop token.
        worst_parts: Parts of a group with the longest prompt whose completions all reach the limit.
        typical_parts: Parts of a group of mean lengths.
    """

    prompts: Prompts
    shared: bool
    padded_reason: str | None
    group_size: int
    groups: int
    longest_completion: int
    typical_completion: int
    worst_parts: tuple[Part, ...]
    typical_parts: tuple[Part, ...]

    @property
    def typical_tokens_per_step(self) -> int:
        """Sampled tokens of a usual step."""
        return self.groups * self.group_size * self.typical_completion


def measure_prompts(recipe: Recipe, tokenizer: PolicyTokenizer) -> Prompts:
    """Prompts as the trainer makes them, the target being the longest one.

    Raises:
        DataMissing, DataEmpty, DataRecord: As at the start of a run. Data that can't be reached from here is estimated.
    """
    data, target = recipe.data, recipe.length.longest_target
    try:
        records = load_records(data, data.train_split)
    except (HubUnreachable, DownloadFailed, PackageMissing):
        empty = prepare_prompt(Record("none", "x", ""), tokenizer, data, target)
        most = len(empty.token_ids) + data.max_document_tokens
        return Prompts(most, float(most), 0)
    stride = math.ceil(len(records) / _MOST_PROMPTS_READ)
    lengths = [len(prepare_prompt(record, tokenizer, data, target).token_ids) for record in records[::stride]]
    return Prompts(max(lengths), fmean(lengths), len(lengths))


def make_workload(recipe: Recipe, facts: ModelFacts, prompts: Prompts) -> Workload:
    """The workload of a recipe."""
    reason = "learner.shared_prompt is false" if not recipe.learner.shared_prompt else facts.padded_reason
    longest, size = recipe.max_completion_tokens, recipe.run.group_size
    lengths = recipe.length.target_range or (recipe.length.target_tokens, recipe.length.target_tokens)
    typical = min(longest, round(sum(lengths) / 2) + 1)
    return Workload(
        prompts=prompts,
        shared=reason is None,
        padded_reason=reason,
        group_size=size,
        groups=recipe.run.groups_per_step,
        longest_completion=longest,
        typical_completion=typical,
        worst_parts=_parts(recipe, prompts.longest, [longest] * size, shared=reason is None),
        typical_parts=_parts(recipe, round(prompts.mean), [typical] * size, shared=reason is None),
    )


def _parts(recipe: Recipe, prompt: int, lengths: Sequence[int], *, shared: bool) -> tuple[Part, ...]:
    learner = recipe.learner
    parts = group_parts(prompt, lengths, shared=shared, recompute=learner.recompute, budget=learner.micro_batch_tokens)
    before = 0 if shared else prompt
    return tuple(
        Part(
            rows=len(rows),
            width=before + lengths[rows[0]] - 1,
            context=prompt if shared else 0,
            tokens=sum(lengths[row] for row in rows),
        )
        for rows in parts
    )
