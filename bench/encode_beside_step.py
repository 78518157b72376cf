"""Whether making a delta for the workers lengthens the training step that runs beside it.

usage: python bench/encode_beside_step.py [--pairs 10] [--model smollm2-135m] [--learning-rate 1e-5] [--threads N]

The learner trains steps of 2 prompts x 8 completions (prompt 256, completion 64, random tokens). Every other step, at
its beginning, the delta of the version that the last step made is asked for, as a worker's fetch would ask: from the
trainer's own shelf, on its own polite threads. Which of a pair comes first alternates. Printed: seconds with and
without, and the mean of the pairs' ratios with its 95 % interval (Student's t over pairs). The first step is
not counted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import threading
import time

from scipy import stats

from tersely.config.learner import LearnerSection
from tersely.models.locate import locate_model
from tersely.telemetry.logging import configure_logging
from tersely.trainer.learner import Learner, TrainingGroup
from tersely.types import GroupId
from tersely.weights.shelf import DeltaShelf
from tersely.weights.snapshot import Snapshot
from tersely.weights.store import SnapshotStore

PROMPTS, GROUP, PROMPT, COMPLETION = 2, 8, 256, 64


def batch(step: int, vocabulary: int) -> list[TrainingGroup]:
    """Random groups, the same for the same step."""
    draw = random.Random(step)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(draw.randrange(vocabulary) for _ in range(count))

    return [
        TrainingGroup(
            group_id=GroupId(f"{step}-{number}"),
            prompt_ids=ids(PROMPT),
            completion_ids=tuple(ids(COMPLETION) for _ in range(GROUP)),
            behaviour_logprobs=tuple((-11.0,) * COMPLETION for _ in range(GROUP)),
            rewards={"length": tuple(draw.random() for _ in range(GROUP))},
        )
        for number in range(PROMPTS)
    ]


class Trainer:
    """A learner that publishes into a store, with a shelf of deltas."""

    def __init__(self, model: str, rate: float, threads: int | None) -> None:
        folder = locate_model(model)
        self.vocabulary = int(json.loads((folder / "config.json").read_text())["vocab_size"])
        self.learner = Learner(
            folder,
            LearnerSection(device="cpu", threads=threads, learning_rate=rate),
            temperature=1.0,
            reward_weights=lambda _: {"length": 1.0},
            total_steps=1_000_000,
            max_completion_tokens=COMPLETION,
        )
        self.store = SnapshotStore("r-bench", folder, (0,), 1 << 20, incarnation=1, keep=2)
        self.shelf = DeltaShelf(self.store)
        self.before: Snapshot | None = None
        self.steps = 0
        self.delta_seconds: list[float] = []
        self.publish()

    def publish(self) -> None:
        self.before = self.store.current
        self.store.publish(self.steps, self.learner.published())

    def step(self, encode: bool) -> float:
        """Seconds of one training step."""
        self.steps += 1
        groups = batch(self.steps, self.vocabulary)
        asked = threading.Thread(target=self.encode) if encode else None
        began = time.perf_counter()
        if asked is not None:
            asked.start()
        self.learner.train(groups, self.steps)
        seconds = time.perf_counter() - began
        if asked is not None:
            asked.join()
        self.publish()
        return seconds

    def encode(self) -> None:
        assert self.before is not None
        assert self.store.current is not None
        delta = asyncio.run(self.shelf.get(self.before.label.weights_sha256, self.store.current))
        assert delta is not None, "the delta was no shorter than the weights"
        self.delta_seconds.append(round(delta.seconds, 3))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--learning-rate", type=float, default=1e-5)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    configure_logging("bench", level="WARNING")
    load = os.getloadavg()[0]
    trainer = Trainer(args.model, args.learning_rate, args.threads)
    trainer.step(encode=False)
    beside: list[float] = []
    alone: list[float] = []
    for pair in range(args.pairs):
        for encode in (True, False) if pair % 2 else (False, True):
            (beside if encode else alone).append(round(trainer.step(encode), 3))
        print(f"pair {pair + 1}: {beside[-1]} s with, {alone[-1]} s without", file=sys.stderr)
    ratios = [slow / fast for slow, fast in zip(beside, alone, strict=True)]
    mean = statistics.fmean(ratios)
    half = 0.0
    if len(ratios) > 1:
        half = float(stats.t.ppf(0.975, len(ratios) - 1)) * statistics.stdev(ratios) / len(ratios) ** 0.5
    commit = subprocess.run(["git", "describe", "--always", "--dirty=+"], capture_output=True, text=True, check=False)
    found = {
        "model": args.model,
        "learning_rate": args.learning_rate,
        "commit": commit.stdout.strip() or None,
        "threads": trainer.learner.threads,
        "load_before": round(load, 2),
        "with_over_without": round(mean, 4),
        "interval_95": [round(mean - half, 4), round(mean + half, 4)],
        "seconds_with": beside,
        "seconds_without": alone,
        "encode_seconds": trainer.delta_seconds,
    }
    trainer.shelf.close()
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
