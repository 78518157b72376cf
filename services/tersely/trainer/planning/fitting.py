"""Which settings would make a recipe fit, found by planning again with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations

from tersely.config import Recipe
from tersely.errors import ConfigError
from tersely.trainer.planning.checks import check_prompts
from tersely.trainer.planning.memory import MIB
from tersely.trainer.planning.plan import USABLE_SHARE, Plan

GIB = 1 << 30

Change = tuple[str, ...]
"""Items `key=value` as `--set` takes them."""

Replan = Callable[[Change], Plan]
"""Plans the recipe with some settings changed; raises ConfigError where they can't be."""


def find_fit(plan: Plan, replan: Replan) -> tuple[Change, Plan] | None:
    """The fewest changes with which a plan fits, and the plan with them; None if there are none.

    Of equally many, those that cost least come first: smaller parts, recomputation, smaller chunks, fewer workers,
    shorter documents, and adapters in place of all weights last.
    """
    single = list(_changes(plan.recipe, plan.work.prompts.longest))
    for size in (1, 2, 3, 4):
        for chosen in combinations(single, size):
            if len({item.split("=")[0] for items in chosen for item in items}) < sum(map(len, chosen)):
                continue
            change = tuple(item for items in chosen for item in items)
            try:
                other = replan(change)
                check_prompts(other.recipe, other.facts, other.work.prompts.longest)
            except ConfigError:
                continue
            if not other.over:
                return change, other
    return None


def shortage(plan: Plan) -> str:
    """Which devices lack memory, how much, and who takes most of it."""
    texts = []
    for device in plan.over:
        limit = plan.setting.limits[device]
        largest = max(
            (process for process in plan.processes if device in process.memory),
            key=lambda process: process.count * process.memory[device].peak_bytes,
        )
        memory = largest.memory[device]
        parts = sorted(memory.phases[memory.peak_phase].items(), key=lambda item: -item[1])[:3]
        shown = ", ".join(f"{name} {size / MIB:.0f} MiB" for name, size in parts if size)
        texts.append(
            f"on {device} it needs about {plan.needed(device) / GIB:.2f} GiB, and {USABLE_SHARE * limit / GIB:.2f} GiB"
            f" of {limit / GIB:.2f} are usable; {largest.count} x {largest.name} {memory.peak_bytes / GIB:.2f} GiB,"
            f" most at {memory.peak_phase}: {shown}"
        )
    return "; ".join(texts)


def _changes(recipe: Recipe, longest_prompt: int) -> Iterator[Change]:
    learner = recipe.learner
    least = longest_prompt + recipe.max_completion_tokens
    for budget in (4096, 2048, 1024, 512, least):
        if least <= budget < learner.micro_batch_tokens:
            yield (f"learner.micro_batch_tokens={budget}",)
    if not learner.recompute:
        yield ("learner.recompute=true",)
    for chunk in (128, 64, 32):
        if chunk < learner.logit_chunk_tokens:
            yield (f"learner.logit_chunk_tokens={chunk}",)
    if recipe.rollout.batch_sequences > recipe.run.group_size:
        yield (f"rollout.batch_sequences={recipe.run.group_size}",)
    for workers in range(recipe.rollout.workers - 1, 0, -1):
        yield (f"rollout.workers={workers}",)
    for size in (recipe.run.group_size // 2, 4):
        if 4 <= size < recipe.run.group_size:
            yield (f"run.group_size={size}",)
    for tokens in (256, 128):
        if tokens < recipe.data.max_document_tokens:
            yield (f"data.max_document_tokens={tokens}",)
    if learner.lora is None:
        yield ("learner.lora.rank=16",)
