"""Peak memory of each process, phase by phase and part by part.

N weights, 4 N bytes in fp32. What a trainer holds throughout: the model (4 N), masters (4 N), AdamW's moments (8 N) and
the bf16 snapshots it serves (2 N each) with deltas between them. Its peak is the largest of four phases:

* backward: gradients (4 N; absent while a step's only part is at work) + saved activations + the larger of the cache
  that a forward pass fills and the working set of the output head
* optimizer: gradients + a bf16 copy of the largest tensor
* publish: the bf16 weights and their payload (2 N each)
* checkpoint: copies of masters and moments (12 N)

With LoRA masters, moments and gradients are those of the adapters, which run merged into the model; bf16 copies of the
weights that they adapt are kept beside it.

Saved activations were counted with `torch.autograd.graph.saved_tensors_hooks` on Llama and Qwen2 models (torch 2.13,
transformers 5.23, sdpa attention), storages once, and the formula gives those counts to 0.1 %. Per layer and position,
with hidden size H, intermediate size I, widths A of all queries and K of all keys, in numbers:

    6 H  inputs, normalised inputs and outputs of the two norms; the latter are the inputs of the projections
    2 A  queries after rotation, output of attention
    2 K  keys and values: positions that run without a cache
    4 I  gate, its activation, up, their product

Positions that run on a prompt's keys and values look back on them through copies repeated for every query head: per
layer 2 A rows (P + L) for R rows of L positions on a prompt of P, and an additive mask of R L (P + L). Without sdpa,
attention keeps its scores, heads L (P + L) per row, twice. fp32 takes 4 bytes per number. Under bf16 autocast it is
4 H in 4 bytes and 5 H + 2 A + 2 K + 4 I in 2 (the input of three projections is cast three times), and each graph
holds bf16 copies of the decoder's matrices.

The head keeps the probabilities of a chunk and works on two more of its size; the gradient of the embedding exists
twice while chunks are added up. Measured against the resident set of a process that gives large allocations back at
once (`MALLOC_MMAP_THRESHOLD_=100000`, SmolLM2-135M), this sum was within 2 %; with glibc's default settings the
resident set is larger by what its heap keeps: `HEAP_FACTOR`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tersely.config import Recipe
from tersely.rpc.address import Address
from tersely.trainer.head import kept_chunks
from tersely.trainer.planning.facts import ModelFacts
from tersely.trainer.planning.workload import Part, Workload
from tersely.weights.readers import MOST_DROPPED

MIB = 1 << 20
TRAINER_BASE_BYTES = 490 * MIB
ROLLOUT_BASE_BYTES = 350 * MIB
SCORER_BASE_BYTES = 165 * MIB
QUEUE_BASE_BYTES = 90 * MIB
"""Resident sets of the processes without any model (interpreter, torch's CPU build, gRPC, tokenizer); the last is
`tersely up` with the embedded server."""

ACCELERATOR_CONTEXT_BYTES = 500 * MIB
HEAP_FACTOR = 1.10
SHELF_BYTES, SHELF_ENTRIES = 256 << 20, 64
"""Most that the trainer keeps of deltas between snapshots."""

DELTA_SHARE = 0.04
"""A delta over its snapshot, for changes of 6e-5 in every weight (0.2 % for 1e-6)."""

Parts = dict[str, int]


@dataclass(frozen=True, slots=True)
class ProcessMemory:
    """What one process needs on one device at most.

    Attributes:
        phases: Phase -> part -> bytes.
    """

    phases: Mapping[str, Parts]

    @property
    def peak_phase(self) -> str:
        """The phase that needs most."""
        return max(self.phases, key=lambda phase: sum(self.phases[phase].values()))

    @property
    def peak_bytes(self) -> int:
        """What that phase needs."""
        return sum(self.phases[self.peak_phase].values())


def activation_bytes(part: Part, facts: ModelFacts, *, autocast: bool) -> int:
    """What the graph of one part keeps until its backward pass; see the module's docstring."""
    on_cache = part.context > 0
    wide = 2 * facts.attention_width + 4 * facts.intermediate
    keys_values = 2 * facts.key_value_width
    if facts.normed_heads:
        wide += 2 * (facts.attention_width + facts.key_value_width)
    if not on_cache:
        wide += keys_values
    per_position = 4 * facts.hidden * 4 + (5 * facts.hidden + wide) * 2 if autocast else (6 * facts.hidden + wide) * 4
    per_position += 4 * facts.heads + 8
    item = 2 if autocast else 4
    positions, span = part.rows * part.width, part.context + part.width
    per_layer = positions * per_position
    if on_cache:
        per_layer += (2 * facts.attention_width * part.rows * span + positions * span) * item
    if facts.scores_kept:
        per_layer += 2 * facts.heads * positions * span * item
    copies = 2 * facts.decoder_parameters if autocast else 0
    # The last norm keeps two more; positions with logits are picked and put together.
    return facts.layers * per_layer + copies + 8 * positions * facts.hidden + 8 * part.tokens * facts.hidden


def snapshots_held(recipe: Recipe, snapshot_bytes: int) -> int:
    """Versions that the trainer keeps for its workers.

    With the first one where held-out prompts are sampled with it, or adapters are merged into it; and where workers may
    be on other machines, with those that slow readers keep.

    Args:
        recipe: Settings; those of `rpc` say how many.
        snapshot_bytes: Of one version.
    """
    newest, limit = recipe.rpc.snapshots, recipe.rpc.snapshot_bytes
    if limit is not None:
        newest = min(newest, max(1, limit // snapshot_bytes))
    first = 1 if recipe.evaluation.prompts or recipe.learner.lora is not None else 0
    remote = recipe.rpc.insecure_lan or not Address(recipe.rpc.host, 0).loopback
    return newest + first + (MOST_DROPPED if remote else 0)


def trainer_memory(recipe: Recipe, facts: ModelFacts, work: Workload, device: str) -> dict[str, ProcessMemory]:
    """Memory of the trainer, by device: `cpu`, and the accelerator if it trains on one.

    Args:
        recipe: Settings.
        facts: The model.
        work: What a step does.
        device: cpu, cuda or mps.
    """
    lora = recipe.learner.lora
    full = 4 * facts.parameters
    trained = full if lora is None else 4 * facts.adapter_parameters(lora.rank, lora.targets)
    learner: Parts = {"weights": full, "masters": trained, "moments": 2 * trained}
    if lora is not None:
        learner["base weights"] = 2 * facts.adapted_parameters(lora.targets)
    elif recipe.learner.kl_coefficient > 0:
        learner["reference"] = full
    backward = learner | _backward(recipe, facts, work, trained, autocast=device != "cpu")
    optimizer = learner | {"gradients": trained, "rounding": 2 * facts.largest}
    held = snapshots_held(recipe, full // 2)
    deltas = min(SHELF_BYTES, min(SHELF_ENTRIES, recipe.run.steps) * round(DELTA_SHARE * full / 2))
    host: Parts = {"libraries": TRAINER_BASE_BYTES, "snapshots": held * full // 2, "deltas": deltas}
    if lora is not None:
        host["adapters"] = held * trained
    publish = {"published copy": full}
    checkpoint = {"checkpoint copy": 3 * trained}
    if device == "cpu":
        phases = {
            "backward": host | backward,
            "optimizer": host | optimizer,
            "publish": host | learner | publish,
            "checkpoint": host | learner | checkpoint,
        }
        return {"cpu": ProcessMemory({phase: _with_heap(parts) for phase, parts in phases.items()})}
    context = {"device context": ACCELERATOR_CONTEXT_BYTES}
    return {
        device: ProcessMemory({"backward": context | backward, "optimizer": context | optimizer}),
        "cpu": ProcessMemory(
            {
                "start": host | {"weights": full},
                "publish": host | publish,
                "checkpoint": host | checkpoint,
            }
        ),
    }


def rollout_memory(recipe: Recipe, facts: ModelFacts, work: Workload, device: str) -> dict[str, ProcessMemory]:
    """Memory of one rollout worker with the torch engine, by device."""
    item = 4 if device == "cpu" else 2
    weights = item * facts.parameters
    rows = max(work.group_size, recipe.rollout.batch_sequences)
    positions = work.prompts.longest + work.longest_completion
    prompts = -(-rows // work.group_size)
    per_position = 2 * facts.key_value_width * facts.layers * item
    decode = {
        "weights": weights,
        "KV cache": (rows * positions + prompts * work.prompts.longest) * per_position,
        "logits": 5 * rows * facts.vocabulary * 4 + facts.intermediate * work.prompts.longest * 4 * item,
    }
    base = {"libraries": ROLLOUT_BASE_BYTES}
    fetched = {"fetched copies": 4 * facts.parameters}
    if device == "cpu":
        # The version held and the next one, which is made from it by a delta, are there beside the model's own weights.
        # What decoding allocated is kept by the heap while the next version is fetched; groups of many lengths leave
        # holes in it. After 58 steps of `length64` a worker came to hold twice what its batches need.
        swap = _with_heap(base | decode | fetched)
        swap["allocator"] += decode["KV cache"] + decode["logits"]
        return {"cpu": ProcessMemory({"swap": swap})}
    context = {"device context": ACCELERATOR_CONTEXT_BYTES}
    return {device: ProcessMemory({"decode": context | decode}), "cpu": ProcessMemory({"swap": base | fetched})}


def _backward(recipe: Recipe, facts: ModelFacts, work: Workload, trained: int, *, autocast: bool) -> Parts:
    """Gradients, activations and working sets at the worst moment of a group."""
    learner, item = recipe.learner, 2 if autocast else 4
    prompt = work.prompts.longest
    per_prompt_position = 2 * facts.key_value_width * facts.layers * item
    parts = work.worst_parts
    activations = max(activation_bytes(part, facts, autocast=autocast) for part in parts)
    before, states = 0, 0
    if work.shared:
        alone = activation_bytes(Part(1, prompt, 0, 0), facts, autocast=autocast)
        states = 2 * prompt * per_prompt_position  # the leaves' gradients, and keys and values where those are all
        if learner.recompute:
            activations = max(activations, alone)
        else:
            before, states = alone, prompt * per_prompt_position
    # The cache of a forward pass holds every layer's keys and values before the copies for query heads are made.
    filled = max(part.rows * (part.context + part.width) for part in parts) * per_prompt_position
    tokens = max(part.tokens for part in parts)
    chunk = min(learner.logit_chunk_tokens, tokens) * facts.vocabulary * 4
    chunks = min(-(-tokens // learner.logit_chunk_tokens), kept_chunks(learner.logit_chunk_tokens, facts.vocabulary))
    embedding = 4 * facts.vocabulary * facts.hidden if learner.lora is None else 0
    head = (2 + chunks) * chunk + 2 * embedding
    found = {"activations": activations + before, "prompt KV": states}
    if work.groups * len(parts) * learner.optimizer_steps_per_batch > 1:
        found["gradients"] = trained
    else:
        # Gradients come as activations go: at the end of the only backward pass they are all there.
        found["gradients"] = max(0, trained - activations - before)
    found["output head" if head >= filled else "forward cache"] = max(head, filled)
    return found


def _with_heap(parts: Parts) -> Parts:
    base = parts.get("libraries", 0)
    return parts | {"allocator": round((HEAP_FACTOR - 1) * (sum(parts.values()) - base))}
