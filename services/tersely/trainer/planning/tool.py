"""`tersely plan`: reads a recipe, its model's config and its data, and says what a run will cost here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from tersely.config import load_recipe
from tersely.errors import PlanDoesNotFit
from tersely.models.device import available_cores, choose_device
from tersely.models.locate import locate_model
from tersely.models.tokenizer import PolicyTokenizer
from tersely.trainer.planning.checks import check_against_model, check_prompts
from tersely.trainer.planning.facts import ModelFacts, read_facts
from tersely.trainer.planning.fitting import GIB, Change, find_fit, shortage
from tersely.trainer.planning.machine import (
    Speed,
    assumed_speed,
    device_is_here,
    device_memory_bytes,
    host_memory_bytes,
    measured_speed,
)
from tersely.trainer.planning.plan import Plan, Setting, make_plan
from tersely.trainer.planning.workload import Prompts, measure_prompts


def run_plan(
    path: Path,
    overrides: Sequence[str] = (),
    *,
    memory_gib: float | None = None,
    device: str | None = None,
    measure: bool = True,
) -> dict[str, Any]:
    """Plans a recipe.

    Args:
        path: The recipe.
        overrides: Items of `--set`.
        memory_gib: Memory of the learner's device, in place of what is found here.
        device: Where learner and workers run, in place of what the recipe says; it need not be here.
        measure: Whether the speed of this machine may be measured (about a second), else it is assumed.

    Returns:
        What `Plan.as_json` describes, with a remark if memory is short just now.

    Raises:
        PlanDoesNotFit: The run needs more memory than there is; the settings that would fit are in the way out.
        ConfigError, DataError, ModelError: As at the start of a run.
    """
    recipe = load_recipe(path, overrides).recipe
    folder = locate_model(recipe.model.name, recipe.model.revision)
    facts = read_facts(folder)
    check_against_model(recipe, facts)
    tokenizer = PolicyTokenizer.from_folder(folder)
    prompts = measure_prompts(recipe, tokenizer)
    check_prompts(recipe, facts, prompts.longest)
    learner_device = device or choose_device(recipe.learner.device, "learner.device").type
    worker_device = device or choose_device(recipe.rollout.device, "rollout.device").type
    cores = available_cores()

    def speed(of: str, threads: int | None) -> Speed:
        if not measure or not device_is_here(of):
            return assumed_speed(of, threads or cores)
        return measured_speed(facts, of, threads or cores, recipe.run.group_size)

    setting = Setting(
        device=learner_device,
        worker_device=worker_device,
        limits=_limits(learner_device, worker_device, memory_gib),
        learner_speed=speed(learner_device, recipe.learner.threads),
        worker_speed=speed(worker_device, recipe.rollout.threads),
        cores=cores,
    )
    plan = make_plan(recipe, facts, prompts, setting)
    if plan.over:
        raise _refusal(plan, path, overrides, facts, prompts, tokenizer)
    found = plan.as_json()
    free = int(psutil.virtual_memory().available)
    if memory_gib is None and plan.needed("cpu") > free:
        found["remarks"].append(
            f"Only {free / GIB:.2f} GiB of this machine's memory are free just now: end other programs first."
        )
    return found


def _limits(learner_device: str, worker_device: str, memory_gib: float | None) -> dict[str, int]:
    limits = {"cpu": host_memory_bytes()}
    for device in (learner_device, worker_device):
        size = device_memory_bytes(device)
        if size is not None:
            limits[device] = size
    if memory_gib is not None:
        limits[learner_device] = round(memory_gib * GIB)
    return limits


def _refusal(
    plan: Plan, path: Path, overrides: Sequence[str], facts: ModelFacts, prompts: Prompts, tokenizer: PolicyTokenizer
) -> PlanDoesNotFit:
    lengths: dict[int, Prompts] = {plan.recipe.data.max_document_tokens: prompts}

    def replan(change: Change) -> Plan:
        recipe = load_recipe(path, [*overrides, *change]).recipe
        documents = recipe.data.max_document_tokens
        if documents not in lengths:
            lengths[documents] = measure_prompts(recipe, tokenizer)
        return make_plan(recipe, facts, lengths[documents], plan.setting)

    found = find_fit(plan, replan)
    message = f"This run does not fit: {shortage(plan)}."
    if found is not None:
        change, other = found
        needed = ", ".join(f"{other.needed(device) / GIB:.2f} GiB on {device}" for device in plan.over)
        sets = " ".join(f"--set {item}" for item in change)
        return PlanDoesNotFit(message, f"It fits with {sets} ({needed}).")
    smaller = replace(facts, parameters=0)
    base = make_plan(plan.recipe, smaller, prompts, plan.setting)
    rest = min(plan.setting.limits[d] * 0.95 - base.needed(d) for d in plan.over)
    hint = f" of about {max(1, int(rest / 30e6))} million weights" if rest > 0 else ""
    return PlanDoesNotFit(
        message,
        f"No setting makes it fit: set model.name to a smaller model{hint}, or run the workers on another machine"
        " (rollout.workers=0 and `tersely rollout` there).",
    )
