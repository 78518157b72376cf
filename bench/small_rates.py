"""Versions of real training at a small learning rate, for `tersely bench weights --checkpoints`, in little memory.

usage: python bench/small_rates.py 1e-6 versions/smollm2-135m@1e-06 [--steps 10] [--state DIR]

Steps of 2 prompts x 8 summaries of ACLSum documents (their first 64 tokens; at most 56 tokens sampled, target 24;
reward `length` and half of `rouge_l`), with the learner, the torch engine and the rewards in this one process: no
queue, no channel. Masters and moments lie in mapped files, so that 3 GB of memory are enough for SmolLM2-135M, and a
program that was interrupted between two steps goes on with `--state`. Written is what `tersely bench weights --keep`
writes: a file per version and a recipe.json that says where they come from.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tersely.config.learner import LearnerSection
from tersely.config.schema import DataSection
from tersely.data.records import Record, load_records
from tersely.grpo.seeds import group_seed
from tersely.models.locate import locate_model
from tersely.models.tokenizer import PolicyTokenizer
from tersely.rollout.engines import EngineSettings, generate, open_engine
from tersely.telemetry.logging import configure_logging
from tersely.trainer.benching.whole_step import _Completion, _entry
from tersely.trainer.learner import Learner, TrainingGroup
from tersely.types import GroupId, WeightsLabel
from tersely.v1 import common_pb2, group_pb2
from tersely.weights.snapshot import Snapshot
from tersely.weights.versions import write_version

PROMPTS, GROUP, TARGET, LIMIT, DOCUMENT = 2, 8, 24, 56, 64
REWARDS = {"length": 1.0, "rouge_l": 0.5}


class MappedState:
    """Keeps masters and moments of a learner in files, which the kernel may write out when memory is short.

    Args:
        learner: Just made; takes over the state if there is one.
        folder: Of the files. `done` in it says after which step they are; while a step writes them there is no `done`.
    """

    def __init__(self, learner: Learner, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._done = folder / "done"
        self._masters: Any = learner._masters
        begun = self._done.is_file()
        if not begun and any(folder.iterdir()):
            raise SystemExit(f"{folder} was left in the middle of a step: delete it and begin anew")
        self.step = int(self._done.read_text()) if begun else 0
        masters: Mapping[str, torch.Tensor] = self._masters._masters
        count = sum(master.numel() for master in masters.values())
        weights, first, second = (_mapped(folder / name, count) for name in ("master", "exp_avg", "exp_avg_sq"))
        at = 0
        for master in masters.values():
            here = slice(at, at + master.numel())
            at += master.numel()
            part = weights[here].view(master.shape)
            if not begun:
                part.copy_(master.detach())
            master.data = part
            self._masters._optimizer.state[master] = {
                "step": torch.tensor(float(self.step)),
                "exp_avg": first[here].view(master.shape),
                "exp_avg_sq": second[here].view(master.shape),
            }
        self._masters._steps = self.step
        self._masters._write()

    def writing(self) -> None:
        """From here on the files belong to no step."""
        self._done.unlink(missing_ok=True)

    def written(self, step: int) -> None:
        """They are those after a step."""
        self._done.write_text(str(step))
        self.step = step


def _mapped(path: Path, count: int) -> torch.Tensor:
    if not path.exists():
        with path.open("wb") as file:
            file.truncate(4 * count)
    return torch.from_file(str(path), shared=True, size=count, dtype=torch.float32)


def _request(
    step: int, index: int, record: Record, document: str, label: WeightsLabel, tokenizer: PolicyTokenizer
) -> Any:
    text = (
        f"Summarize the following text in one sentence of about {TARGET} tokens. Write only the summary.\n\n{document}"
    )
    group = group_pb2.PromptGroup(
        run_id="small-rates",
        group_id=f"g-{step}-{index}",
        prompt_id=f"{step}-{index}",
        group_size=GROUP,
        target_tokens=TARGET,
        reference=record.reference(TARGET),
        prompt_token_ids=tokenizer.encode_chat([{"role": "user", "content": text}]),
        stop_token_ids=tokenizer.stop_token_ids,
        purpose=common_pb2.GROUP_PURPOSE_TRAINING,
    )
    group.required_weights.CopyFrom(label.to_proto())
    group.sampling.temperature = 1.0
    group.sampling.max_completion_tokens = LIMIT
    group.sampling.seed = group_seed(0, step, f"{step}-{index}")
    return group


def _scored(
    group: Any, generated: Any, document: str, tokenizer: PolicyTokenizer, rewards: Mapping[str, Any]
) -> TrainingGroup:
    stops = set(tokenizer.stop_token_ids)
    inputs = [
        _Completion(
            text=tokenizer.decode([token for token in c.token_ids if token not in stops]),
            token_count=len(c.token_ids) - (c.token_ids[-1] in stops),
            stopped=c.token_ids[-1] in stops,
            target_tokens=TARGET,
            reference=group.reference,
            document=document,
            group_key=group.group_id,
        )
        for c in generated.completions
    ]
    return TrainingGroup(
        group_id=GroupId(group.group_id),
        prompt_ids=tuple(group.prompt_token_ids),
        completion_ids=tuple(tuple(c.token_ids) for c in generated.completions),
        behaviour_logprobs=tuple(tuple(c.behaviour_logprobs) for c in generated.completions),
        rewards={name: tuple(reward.score(inputs)) for name, reward in rewards.items()},
    )


def main() -> None:
    """Trains and writes versions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("learning_rate", type=float)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--state", type=Path, default=None)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    configure_logging("bench", level="WARNING")
    with tempfile.TemporaryDirectory(prefix="tersely-rates-") as temporary:
        _train(given, given.state or Path(temporary) / "state")


def _train(given: argparse.Namespace, state_folder: Path) -> None:
    folder = locate_model(given.model)
    tokenizer = PolicyTokenizer.from_folder(folder)
    section = LearnerSection(
        device="cpu", threads=given.threads, learning_rate=given.learning_rate, micro_batch_tokens=512
    )
    learner = Learner(
        folder,
        section,
        temperature=1.0,
        reward_weights=lambda _: REWARDS,
        total_steps=given.steps,
        max_completion_tokens=LIMIT,
    )
    state = MappedState(learner, state_folder)
    rewards = {name: _entry("tersely.rewards", name)() for name in REWARDS}
    given.out.mkdir(parents=True, exist_ok=True)
    recipe = {
        "model": {"name": given.model},
        "learner": {"learning_rate": given.learning_rate},
        "data": {"source": "aclsum"},
    }
    (given.out / "recipe.json").write_text(json.dumps(recipe, indent=2) + "\n")

    def publish(step: int) -> tuple[WeightsLabel, dict[str, torch.Tensor]]:
        tensors = learner.published()
        snapshot = Snapshot.build(
            step, tensors, run_id="r", model_files=(), stop_token_ids=(), chunk_bytes=1 << 20, incarnation=0
        )
        write_version(given.out, snapshot.label, tensors)
        return snapshot.label, tensors

    records = []
    for record in load_records(DataSection(source="aclsum"), "train"):
        ids = tokenizer.encode(tokenizer.plain(record.document))
        if len(ids) >= DOCUMENT:
            records.append((record, tokenizer.decode(ids[:DOCUMENT])))
    engine = open_engine("torch", EngineSettings("cpu", given.threads, PROMPTS * GROUP))
    label, tensors = publish(state.step)
    engine.load(folder, label, tensors)
    for step in range(state.step + 1, given.steps + 1):
        began = time.monotonic()
        groups = []
        for index in range(PROMPTS):
            record, document = records[((step - 1) * PROMPTS + index) % len(records)]
            request = _request(step, index, record, document, label, tokenizer)
            (generated,) = generate(engine, [request])
            groups.append(_scored(request, generated, document, tokenizer, rewards))
        sampled = time.monotonic()
        state.writing()
        health = learner.train(groups, step)
        label, tensors = publish(step)
        state.written(step)
        engine.swap(label, tensors)
        norm = health.grad_norm
        print(
            f"step {step}: sampled {sampled - began:.1f} s, all {time.monotonic() - began:.1f} s, |g| {norm:.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
