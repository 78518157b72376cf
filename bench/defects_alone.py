"""What a defect costs with all else equal: the tiny model, sampler and learner in one process, exact staleness.

usage: python bench/defects_alone.py [--seeds 3] [--steps 40] [--out FILE] [CASE ...]

`bench/defects.py` runs whole runs, whose asynchronous ones are as stale as timing makes them. Here a batch is trained
exactly so many versions after it was sampled, and the same seed draws the same prompts, so sound and defective runs
differ by the defect alone. What is sampled from is the published version.

In the cases of one batch it is trained on again and again; the gain is how much better its advantage-weighted, clipped
objective (minus the loss) is in the end than before, and so what the updates are for.

Other figures: |tokens - target| over the samples of the first five and last ten batches, and of all; published weights
that differ from the start.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

import torch

from tersely.config.learner import LearnerSection
from tersely.grpo.seeds import group_seed
from tersely.models.locate import locate_model
from tersely.models.tokenizer import PolicyTokenizer
from tersely.rollout.engines.base import EngineSettings, generate
from tersely.rollout.engines.torch_engine import TorchEngine
from tersely.trainer.groups import TrainingGroup
from tersely.trainer.learner import Learner
from tersely.types import GroupId, PolicyVersion, WeightsLabel
from tersely.v1 import common_pb2, group_pb2

PROMPTS = Path(__file__).resolve().parents[1] / "recipes" / "data" / "tiny" / "train.jsonl"
TARGET, LIMIT, GROUPS, SIZE = 16, 48, 4, 8
SAME_BATCH = -1
CASES: dict[str, tuple[int, list[str], dict[str, Any]]] = {
    # name: versions between sampling and training, defects to compare with a sound run, learner settings
    "one batch, lr 1e-6": (SAME_BATCH, ["bf16_masters"], {"learning_rate": 1e-6}),
    "one batch, lr 1e-5": (SAME_BATCH, ["bf16_masters"], {"learning_rate": 1e-5}),
    "lr 3e-4": (0, ["bf16_masters"], {"learning_rate": 3e-4}),
    "lr 1e-3": (0, ["bf16_masters", "no_stop_token"], {"learning_rate": 1e-3}),
    "lr 5e-3": (0, ["no_stop_token"], {"learning_rate": 5e-3}),
    "lr 5e-3, 4 versions old": (4, ["recomputed_logprobs"], {"learning_rate": 5e-3}),
    "lr 5e-3, 4 versions old, 4 passes": (
        4,
        ["recomputed_logprobs"],
        {"learning_rate": 5e-3, "optimizer_steps_per_batch": 4},
    ),
}


class Alone:
    """Samples, scores by length and trains, without anything round it."""

    def __init__(self, seed: int, steps: int, settings: dict[str, Any]) -> None:
        self._seed = seed
        folder = locate_model("tiny")
        self._tokenizer = PolicyTokenizer.from_folder(folder)
        lines = PROMPTS.read_text().splitlines()
        self._prompts = [self._ids(json.loads(line)["document"]) for line in lines]
        section = LearnerSection.model_validate({"device": "cpu", "threads": 1, "warmup_steps": 1, **settings})
        self.learner = Learner(
            folder,
            section,
            temperature=1.0,
            reward_weights=lambda _: {"length": 1.0},
            total_steps=steps,
            max_completion_tokens=LIMIT,
            stop_token_ids=self._tokenizer.stop_token_ids,
        )
        self._engine = TorchEngine(EngineSettings(device="cpu", threads=1, batch_sequences=GROUPS * SIZE))
        self.first = self.learner.published()
        self._engine.load(folder, self._label(0), self.first)

    def sample(self, number: int) -> tuple[list[TrainingGroup], list[float]]:
        """A batch by the newest version, and |tokens - target| of each completion."""
        groups: list[TrainingGroup] = []
        errors: list[float] = []
        requests = [self._request(number * GROUPS + index) for index in range(GROUPS)]
        done_by_id = {done.prompt.group_id: done for done in generate(self._engine, requests)}
        for request in requests:
            done = done_by_id[request.group_id]
            lengths = [len(c.token_ids) - (c.finish_reason == common_pb2.FINISH_REASON_STOP) for c in done.completions]
            distance = [abs(length - TARGET) for length in lengths]
            errors += distance
            groups.append(
                TrainingGroup(
                    group_id=GroupId(request.group_id),
                    prompt_ids=tuple(done.prompt.prompt_token_ids),
                    completion_ids=tuple(tuple(c.token_ids) for c in done.completions),
                    behaviour_logprobs=tuple(tuple(c.behaviour_logprobs) for c in done.completions),
                    rewards={"length": tuple(-float(d) for d in distance)},
                )
            )
        return groups, errors

    def publish(self, version: int) -> None:
        """Hands the learner's weights to the sampler."""
        self._engine.swap(self._label(version), self.learner.published())

    def _ids(self, document: str) -> list[int]:
        return self._tokenizer.encode(document)[:96]

    def _label(self, version: int) -> WeightsLabel:
        return WeightsLabel(PolicyVersion(version), f"{version:064x}")

    def _request(self, issue: int) -> group_pb2.PromptGroup:
        index = (issue * 7919 + self._seed) % len(self._prompts)
        request = group_pb2.PromptGroup(
            group_id=f"g{issue}",
            prompt_token_ids=self._prompts[index],
            group_size=SIZE,
            stop_token_ids=self._tokenizer.stop_token_ids,
        )
        request.sampling.temperature = 1.0
        request.sampling.max_completion_tokens = LIMIT
        request.sampling.seed = group_seed(self._seed, issue, str(index))
        return request


def run(behind: int, seed: int, steps: int, settings: dict[str, Any]) -> dict[str, float]:
    """One training; its figures."""
    alone = Alone(seed, steps, settings)
    waiting: deque[list[TrainingGroup]] = deque()
    errors: list[float] = []
    losses: list[float] = []
    for number in range(steps + max(behind, 0)):
        if number < (1 if behind == SAME_BATCH else steps):
            batch, distance = alone.sample(number)
            waiting.append(batch)
            errors.append(statistics.fmean(distance))
        if number >= behind:
            batch = waiting[0] if behind == SAME_BATCH else waiting.popleft()
            losses.append(alone.learner.train(batch, number - max(behind, 0) + 1).loss)
            alone.publish(number - max(behind, 0) + 1)
    final = alone.learner.published()
    moved = sum(int((alone.first[name] != final[name]).sum()) for name in final)
    return {
        "first_5": statistics.fmean(errors[:5]),
        "last_10": statistics.fmean(errors[-10:]),
        "all": statistics.fmean(errors),
        "gain": losses[0] - losses[-1] if behind == SAME_BATCH else math.nan,
        "weights_moved": moved / sum(tensor.numel() for tensor in final.values()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help="Default: all.")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--out", type=Path, help="Write the figures of every run here.")
    args = parser.parse_args()
    torch.set_num_threads(1)
    table: dict[str, dict[str, list[dict[str, float]]]] = {}
    for seed in range(args.seeds):
        for case in args.cases or CASES:
            behind, defects, settings = CASES[case]
            for defect in ("", *defects):
                began = time.monotonic()
                found = run(behind, seed, args.steps, {**settings, "ablate": [defect] if defect else []})
                table.setdefault(case, {}).setdefault(defect or "sound", []).append(found)
                seconds = time.monotonic() - began
                print(f"{case}, {defect or 'sound'}, seed {seed}: {seconds:.0f} s {found}", file=sys.stderr)
                if args.out:
                    args.out.write_text(json.dumps({"steps": args.steps, "cases": table}) + "\n")
    print("| setting | run | error, first 5 batches | all | last 10 | gain | weights moved |")
    print("|---|---|---|---|---|---|---|")
    for case, rows in table.items():
        for name, runs in rows.items():
            mean = {key: statistics.fmean(run[key] for run in runs) for key in runs[0]}
            last = [run["last_10"] for run in runs]
            print(
                f"| {case} | {name} | {mean['first_5']:.1f} | {mean['all']:.1f}"
                f" | {mean['last_10']:.1f} ({min(last):.1f} to {max(last):.1f})"
                f" | {mean['gain']:.4f} | {mean['weights_moved']:.1%} |"
            )


if __name__ == "__main__":
    main()
