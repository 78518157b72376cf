"""A plan: per process and device the peak memory, per phase the time, and what of it does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tersely.config import Recipe
from tersely.models.device import available_cores
from tersely.trainer.planning.facts import CALIBRATED_TYPES, ModelFacts
from tersely.trainer.planning.machine import Speed
from tersely.trainer.planning.memory import (
    QUEUE_BASE_BYTES,
    SCORER_BASE_BYTES,
    ProcessMemory,
    rollout_memory,
    trainer_memory,
)
from tersely.trainer.planning.timing import describe, overhead_seconds, step_seconds, whole_step
from tersely.trainer.planning.workload import Prompts, Workload, make_workload

USABLE_SHARE = 0.95
"""Share of a machine's memory that a run may take; the system needs the rest."""


@dataclass(frozen=True, slots=True)
class Setting:
    """Where a plan is made for.

    Attributes:
        device: Where the learner runs: cpu, cuda or mps.
        worker_device: Where the rollout workers run.
        limits: Per device its memory in bytes; a device that is missing has no known limit.
        learner_speed, worker_speed: Of those devices.
        cores: CPU cores.
    """

    device: str
    worker_device: str
    limits: Mapping[str, int]
    learner_speed: Speed
    worker_speed: Speed
    cores: int


@dataclass(frozen=True, slots=True)
class Process:
    """One kind of process.

    Attributes:
        name: trainer, rollout, scorer, or up (the supervisor with the embedded queue).
        count: How many of them.
        memory: Per device what each of them needs.
    """

    name: str
    count: int
    memory: Mapping[str, ProcessMemory]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a recipe comes to in a setting."""

    recipe: Recipe
    facts: ModelFacts
    work: Workload
    setting: Setting
    processes: tuple[Process, ...]
    seconds: Mapping[str, float]
    overhead: Mapping[str, float]

    def needed(self, device: str) -> int:
        """Bytes of all processes together on a device."""
        return sum(p.count * p.memory[device].peak_bytes for p in self.processes if device in p.memory)

    @property
    def over(self) -> list[str]:
        """Devices with too little memory."""
        return [d for d, limit in self.setting.limits.items() if self.needed(d) > USABLE_SHARE * limit]

    @property
    def peak_memory_bytes(self) -> int:
        """Peak of the trainer on the learner's device."""
        return self.processes[0].memory[self.setting.device].peak_bytes

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON values; bytes, seconds and tokens."""
        recipe, facts, work = self.recipe, self.facts, self.work
        lora = recipe.learner.lora
        trained = facts.parameters if lora is None else facts.adapter_parameters(lora.rank, lora.targets)
        checkpoint = 12 * trained
        return {
            "peak_memory_bytes": self.peak_memory_bytes,
            "seconds_per_step": round(whole_step(recipe, dict(self.seconds), self.setting.device), 3),
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
            "model": {
                "name": recipe.model.name,
                "type": facts.model_type,
                "parameters": facts.parameters,
                "trained_parameters": trained,
            },
            "forward": {"way": "shared" if work.shared else "padded", "reason": work.padded_reason},
            "settings": {
                "max_completion_tokens": work.longest_completion,
                "typical_completion_tokens": work.typical_completion,
                "longest_prompt_tokens": work.prompts.longest,
                "mean_prompt_tokens": round(work.prompts.mean, 1),
                "prompts_looked_at": work.prompts.looked_at,
                "completions_per_step": work.groups * work.group_size,
                "tokens_per_step": work.typical_tokens_per_step,
                "micro_batches_per_step": work.groups * len(work.worst_parts),
                "micro_batches_of_a_group": describe(work.worst_parts),
                "optimizer_steps_per_batch": recipe.learner.optimizer_steps_per_batch,
            },
            "nodes": [
                {
                    "node": process.name,
                    "count": process.count,
                    "device": device,
                    "peak_memory_bytes": memory.peak_bytes,
                    "peak_phase": memory.peak_phase,
                    "memory": memory.phases[memory.peak_phase],
                    "phases": {phase: sum(parts.values()) for phase, parts in memory.phases.items()},
                }
                for process in self.processes
                for device, memory in process.memory.items()
            ],
            "devices": {
                device: {"needed_bytes": self.needed(device), "memory_bytes": self.setting.limits.get(device)}
                for device in sorted({device for process in self.processes for device in process.memory})
            },
            "disk": {
                "checkpoint_bytes": checkpoint,
                "kept_bytes": (recipe.run.keep_checkpoints + 1 + bool(recipe.evaluation.every)) * checkpoint,
                "policy_bytes": 2 * facts.parameters,
            },
            "basis": {"learner": self.setting.learner_speed.basis, "rollout": self.setting.worker_speed.basis},
            "remarks": self.remarks(),
        }

    def remarks(self) -> list[str]:
        """What a reader should know of this estimate."""
        found = []
        if self.facts.model_type not in CALIBRATED_TYPES:
            known = ", ".join(sorted(CALIBRATED_TYPES))
            found.append(f"The memory of activations was derived from {known}; a {self.facts.model_type} may differ.")
        if self.work.padded_reason is not None:
            found.append(f"Padded forward, the prompt once per sample: {self.work.padded_reason}.")
        if self.work.prompts.looked_at == 0:
            found.append("The data can't be reached from here: prompts are taken as long as the recipe allows.")
        least = self.work.prompts.longest + self.work.longest_completion
        if least > self.recipe.learner.micro_batch_tokens:
            found.append(
                f"One row can have {least} positions, more than learner.micro_batch_tokens"
                f" ({self.recipe.learner.micro_batch_tokens}): it runs alone, and is counted so."
            )
        device = self.setting.device
        shares = [whole_step(self.recipe, dict(seconds), device) for seconds in (self.overhead, self.seconds)]
        if shares[0] > shares[1] / 2:
            found.append(
                "A model as small as this one spends its time on overhead more than on products: take the seconds as a"
                " rough guess, and expect several times as much when other programs are at work."
            )
        if self.setting.device != "cpu":
            found.append("The estimate for accelerators is by formula; it was not compared with measurements.")
        if "parallel" in self.recipe.learner.model_fields_set:
            found.append(
                "This counts one process of the learner. learner.parallel"
                f" ({self.recipe.learner.parallel}) only matters under torchrun, where each process has its own share"
                " of the work, and memory of its own."
            )
        if self.setting.device not in self.setting.limits:
            found.append(f"There is no {self.setting.device} here; give its memory by --memory-gib to have it checked.")
        return found


def make_plan(recipe: Recipe, facts: ModelFacts, prompts: Prompts, setting: Setting) -> Plan:
    """Plans a recipe; nothing is checked."""
    work = make_workload(recipe, facts, prompts)
    device = setting.device
    processes = [Process("trainer", 1, trainer_memory(recipe, facts, work, device))]
    if recipe.rollout.workers:
        memory = rollout_memory(recipe, facts, work, setting.worker_device)
        processes.append(Process("rollout", recipe.rollout.workers, memory))
    processes.append(Process("scorer", recipe.scorer.workers, _fixed(SCORER_BASE_BYTES)))
    processes.append(Process("up", 1, _fixed(QUEUE_BASE_BYTES)))
    cores = setting.cores or available_cores()
    seconds = step_seconds(
        recipe,
        facts,
        work,
        device=device,
        learner=setting.learner_speed,
        worker=setting.worker_speed,
        cores=cores,
    )
    overhead = overhead_seconds(recipe, facts, work, device=device, cores=cores)
    return Plan(recipe, facts, work, setting, tuple(processes), seconds, overhead)


def _fixed(size: int) -> dict[str, ProcessMemory]:
    return {"cpu": ProcessMemory({"at work": {"libraries": size}})}
