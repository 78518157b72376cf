"""Seconds of a step, by counting operations; good to a factor of about two.

A position costs 2 operations per weight of the decoder's matrices forward and 4 backward, and 4 A (span) per layer
forward for attention, twice that backward. A position with logits costs 2 V H forward, once more in the backward pass
(where logits are made again) and 4 V H backward. Not all of a step is matrix products: `EFFICIENCY` is the share of
the measured speed of products that whole steps reached on a CPU. Decoding reads all weights once per token of the
longest completion of a group, the prompt's cost beside it.

What does not grow with the size of a layer is counted beside that: the calls of every layer per decoding step and per
pass of the learner, and the way of a group through the queue and the scorer. On a CPU these were taken from models with
2 and 14 tiny layers on one thread; in a step of a model of 100 million weights they are a few percent, in a step of a
tiny one nearly all.
"""

from __future__ import annotations

from collections.abc import Sequence

from tersely.config import Recipe
from tersely.trainer.planning.facts import ModelFacts
from tersely.trainer.planning.machine import Speed
from tersely.trainer.planning.workload import Part, Workload

EFFICIENCY = {"cpu": 0.6, "cuda": 0.35, "mps": 0.35}
DECODE_EFFICIENCY = {"cpu": 0.6, "cuda": 0.3, "mps": 0.3}
LONGEST_OVER_TYPICAL = 1.6
"""How much longer the longest completion of a group is than a usual one; its row ends the group."""

LAYER_STEP_SECONDS = {"cpu": 3.5e-4, "cuda": 3e-4, "mps": 5e-4}
"""What a decoding step costs per layer beside its products."""

LAYER_PASS_SECONDS = {"cpu": 2.5e-3, "cuda": 1e-3, "mps": 2e-3}
"""What a forward and backward pass of a micro-batch, or of a shared prompt, costs per layer beside its products."""

GROUP_SECONDS = 0.02
"""What a group costs from its lease to the learner beside sampling and training: queue, ring, scoring, log."""

PUBLISH_SECONDS = 0.005
"""What publishing costs beside hashing and copying."""

_MOST_HASH_THREADS = 4


def step_seconds(
    recipe: Recipe, facts: ModelFacts, work: Workload, *, device: str, learner: Speed, worker: Speed, cores: int
) -> dict[str, float]:
    """Rollout, learn and publish of a step, in seconds.

    Args:
        recipe: Settings.
        facts: The model.
        work: What a step does.
        device: Where both the learner and the workers run.
        learner: Speed of the learner's device.
        worker: Speed of one worker's device.
        cores: CPU cores of the machine.
    """
    work_alone = {
        "rollout": _rollout(recipe, facts, work, worker, device, cores),
        "learn": _learn(recipe, facts, work, learner, device),
        "publish": _publish(facts, learner, cores),
    }
    overhead = overhead_seconds(recipe, facts, work, device=device, cores=cores)
    return {name: seconds + overhead[name] for name, seconds in work_alone.items()}


def overhead_seconds(recipe: Recipe, facts: ModelFacts, work: Workload, *, device: str, cores: int) -> dict[str, float]:
    """The share of `step_seconds` that a smaller model would cost as well, by the same names."""
    passes = recipe.learner.optimizer_steps_per_batch * work.groups * (len(work.typical_parts) + work.shared)
    rounds, together, crowded = _rounds(recipe, work, device, cores)
    steps = facts.layers * LAYER_STEP_SECONDS[device] * _decoded(work)
    return {
        "rollout": rounds * (steps * crowded + together * GROUP_SECONDS),
        "learn": passes * facts.layers * LAYER_PASS_SECONDS[device],
        "publish": PUBLISH_SECONDS,
    }


def whole_step(recipe: Recipe, seconds: dict[str, float], device: str) -> float:
    """Seconds from step to step: one after the other when synchronous, or where all share the CPU."""
    learning = seconds["learn"] + seconds["publish"]
    if recipe.synchronous or device == "cpu":
        return seconds["rollout"] + learning
    return max(seconds["rollout"], learning)


def learner_operations(recipe: Recipe, facts: ModelFacts, work: Workload) -> float:
    """Floating-point operations of the forward and backward passes of a step."""
    prompt = round(work.prompts.mean)
    total = sum(3 * _forward(part, facts) for part in work.typical_parts)
    if work.shared:
        total += (4 if recipe.learner.recompute else 3) * _forward(Part(1, prompt, 0, 0), facts)
    tokens = work.group_size * work.typical_completion
    total += 8.0 * tokens * facts.vocabulary * facts.hidden
    passes = recipe.learner.optimizer_steps_per_batch
    reference = 1 / 3 if recipe.learner.kl_coefficient > 0 else 0.0
    return total * work.groups * (passes + reference)


def _learn(recipe: Recipe, facts: ModelFacts, work: Workload, speed: Speed, device: str) -> float:
    optimizer = 28 * facts.parameters / speed.decode_bytes * recipe.learner.optimizer_steps_per_batch
    return learner_operations(recipe, facts, work) / (speed.flops * EFFICIENCY[device]) + optimizer


def _forward(part: Part, facts: ModelFacts) -> float:
    positions, span = part.rows * part.width, part.context + part.width / 2
    return positions * (2.0 * facts.decoder_parameters + 4.0 * facts.attention_width * facts.layers * span)


def _rollout(recipe: Recipe, facts: ModelFacts, work: Workload, speed: Speed, device: str, cores: int) -> float:
    item = 4 if device == "cpu" else 2
    per_token = item * facts.parameters / (speed.decode_bytes * DECODE_EFFICIENCY[device])
    prefill = _forward(Part(1, round(work.prompts.mean), 0, 0), facts) / (speed.flops * EFFICIENCY[device])
    rounds, together, crowded = _rounds(recipe, work, device, cores)
    return rounds * (_decoded(work) * per_token + together * prefill) * crowded


def _rounds(recipe: Recipe, work: Workload, device: str, cores: int) -> tuple[int, int, float]:
    """Times each worker decodes in a step, groups at once, and how much slower for want of cores."""
    workers = max(1, recipe.rollout.workers)
    together = 1 if recipe.synchronous else max(1, recipe.rollout.batch_sequences // work.group_size)
    wanted = workers * (recipe.rollout.threads or cores) if device == "cpu" else 1
    return -(-work.groups // (workers * together)), together, max(1.0, wanted / cores)


def _decoded(work: Workload) -> int:
    """Decoding steps of a group: tokens of its longest completion."""
    return min(work.longest_completion, round(work.typical_completion * LONGEST_OVER_TYPICAL))


def _publish(facts: ModelFacts, speed: Speed, cores: int) -> float:
    payload = 2 * facts.parameters
    hashing = 2 * payload / (speed.hash_bytes * min(_MOST_HASH_THREADS, cores))
    return hashing + 4 * payload / speed.decode_bytes


def describe(parts: Sequence[Part]) -> str:
    """Parts of a group in words."""
    widest = max(parts, key=lambda part: part.rows * (part.context + part.width))
    return f"{len(parts)} of at most {widest.rows} rows x {widest.width} positions"
