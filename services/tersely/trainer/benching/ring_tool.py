"""All of `tersely bench ring`: groups per second with instant engines, and with more and more that take some time."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tersely.queue.embedded import EmbeddedServer
from tersely.trainer.benching.machine import machine_facts
from tersely.trainer.benching.ring_processes import Crew, HopWatch, per_group_ms
from tersely.trainer.benching.ring_trainer import Batch, RingTrainer

PROMPT_TOKENS = 256
TARGET_TOKENS = 32
GROUP_SIZE = 8
INSTANT_WORKERS = 2
STEP_SECONDS, STEP_TOKENS = 0.1, 4
"""40 tokens per second and sequence, 640 per worker: a small model on a small GPU or a Mac."""

_SLOTS = 2
_WARM_UP_SECONDS = 3.0
_LONE_GROUPS = 40
_FEW, _LONGER = 8, 2.0
_COMMON = (
    "model.name=tiny",
    "data.source=bench",
    f"run.group_size={GROUP_SIZE}",
    f"length.target_tokens={TARGET_TOKENS}",
    f"length.max_completion_tokens={2 * TARGET_TOKENS}",
    "run.max_refill=1000000",
    "run.steps=1000000",
    "evaluation.prompts=0",
    "rollout.engine=stub",
    "rollout.threads=1",
)


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast engines pretend to be, and how much goes on at once.

    Attributes:
        step_seconds: Seconds that an engine sleeps per step.
        step_tokens: Tokens of each sequence per step.
        slots: Groups that a worker decodes together.
        groups_per_step: Groups per batch.
        credits: Batches on their way at once.
    """

    step_seconds: float
    step_tokens: int
    slots: int
    groups_per_step: int
    credits: int

    def overrides(self) -> list[str]:
        """Items of `--set`."""
        return [
            *_COMMON,
            f"run.groups_per_step={self.groups_per_step}",
            f"run.max_staleness={self.credits - 1}",
            f"rollout.batch_sequences={self.slots * GROUP_SIZE}",
        ]


INSTANT = Pace(0.0, 2 * TARGET_TOKENS, slots=8, groups_per_step=8, credits=8)
LATENT = Pace(STEP_SECONDS, STEP_TOKENS, slots=_SLOTS, groups_per_step=2, credits=64)


def run_bench_ring(
    *,
    seconds: float,
    workers: Sequence[int],
    scorers: int,
    keep: Path | None,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """Measures; nothing else should run on the machine.

    Args:
        seconds: Length of each measurement; of those with fewer than eight workers twice as long.
        workers: Numbers of worker processes for the scaling, ascending.
        scorers: Scorer processes.
        keep: New folder for logs and run directories; none: they are deleted.
        progress: Told of each measurement.

    Returns:
        `groups_per_second` with engines that take no time, `scaling`: groups per second by number of workers whose
        engines take some, and under `details` everything that they come from.

    Raises:
        ServiceFailed: A measured process did not come up.
    """
    load = os.getloadavg()[0]
    with ExitStack() as stack:
        folder = keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tersely-ring-")))
        instant = _instant(folder / "instant", seconds, scorers, progress)
        rows, books = _scaling(folder / "scaling", seconds, sorted(workers), scorers, progress) if workers else ([], {})
    return {
        "groups_per_second": instant["groups_per_second"],
        "scaling": {str(row["workers"]): row["groups_per_second"] for row in rows},
        "details": {
            "what": "the trainer's own ring, log and books without a learner; scorers, workers, Valkey as processes",
            "group": {
                "completions": GROUP_SIZE,
                "prompt_tokens": PROMPT_TOKENS,
                "max_completion_tokens": 2 * TARGET_TOKENS,
                "rewards": ["length"],
            },
            "load_before": round(load, 2),
            "machine": machine_facts(),
            "instant": instant,
            "latency": {
                "step_seconds": LATENT.step_seconds,
                "step_tokens": LATENT.step_tokens,
                "groups_per_worker": LATENT.slots,
                "rows": rows,
                "books": books,
            },
        },
    }


def _instant(folder: Path, seconds: float, scorers: int, progress: Callable[[str], None]) -> dict[str, Any]:
    with ExitStack() as stack:
        server, trainer, crew = _ring(folder, INSTANT, stack)
        crew.grow("scorer", scorers)
        crew.grow("rollout", INSTANT_WORKERS)
        trainer.wait_for("scorer", scorers)
        trainer.wait_for("rollout", INSTANT_WORKERS)
        trainer.run(_WARM_UP_SECONDS)
        before = crew.cpu_seconds(server.pid)
        batches = trainer.run(seconds)
        after = crew.cpu_seconds(server.pid)
        rate = _rate(batches)
        progress(f"{INSTANT_WORKERS} workers with engines that take no time: {rate} groups/s")
        trainer.finish()
        hops = _lone(trainer, server.url)
        progress(f"a group on its own: {hops.get('round')} ms beside generating and scoring")
        return {
            "workers": INSTANT_WORKERS,
            "scorers": scorers,
            "groups_per_worker": INSTANT.slots,
            "groups_on_their_way": INSTANT.groups_per_step * INSTANT.credits,
            "groups_per_second": rate,
            "groups": sum(len(batch.groups) for batch in batches),
            "cpu_ms_per_group": per_group_ms(before, after, sum(len(batch.groups) for batch in batches)),
            "lone_group_ms": hops,
            "books": trainer.counts(),
        }


def _lone(trainer: RingTrainer, redis_url: str) -> dict[str, float]:
    """One group at a time: what the ring adds to generating and scoring when nothing else waits."""
    run = trainer.recipe.run.model_copy(update={"groups_per_step": 1, "max_staleness": 0})
    collector = trainer.collector_for(trainer.recipe.model_copy(update={"run": run}))
    with HopWatch(redis_url, trainer.keys) as watch:
        trainer.run(1.0, collector)
        batches = trainer.run(30.0, collector, most=_LONE_GROUPS)
        ahead = time.time() - time.monotonic()
        trainer.finish(collector)
        return watch.hops([(batch.at + ahead, group) for batch in batches for group in batch.groups])


def _scaling(
    folder: Path, seconds: float, workers: Sequence[int], scorers: int, progress: Callable[[str], None]
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        server, trainer, crew = _ring(folder, LATENT, stack)
        crew.grow("scorer", scorers)
        trainer.wait_for("scorer", scorers)
        for number in workers:
            crew.grow("rollout", number)
            trainer.wait_for("rollout", number)
            trainer.run(_WARM_UP_SECONDS)
            before, began = crew.cpu_seconds(server.pid), time.monotonic()
            batches = trainer.run(seconds * _LONGER if number < _FEW else seconds)
            wall, after = time.monotonic() - began, crew.cpu_seconds(server.pid)
            groups = [group for batch in batches for group in batch.groups]
            row: dict[str, Any] = {
                "workers": number,
                "groups_per_second": _rate(batches),
                "groups": len(groups),
                "engines_busy": round(
                    sum(group.group.generate_seconds for group in groups) / (number * LATENT.slots * wall), 3
                ),
                "cores_used": round((sum(after.values()) - sum(before.values())) / wall, 2),
                "cpu_ms_per_group": per_group_ms(before, after, len(groups)),
            }
            first = rows[0] if rows else row
            linear = first["groups_per_second"] * number / first["workers"]
            row["of_linear"] = round(row["groups_per_second"] / linear, 3) if linear else None
            rows.append(row)
            progress(f"{number} workers: {row['groups_per_second']} groups/s, {row['of_linear']} of linear")
        trainer.finish()
        return rows, trainer.counts()


def _ring(folder: Path, pace: Pace, stack: ExitStack) -> tuple[EmbeddedServer, RingTrainer, Crew]:
    server = stack.enter_context(EmbeddedServer(folder / "valkey"))
    trainer = RingTrainer(folder / "run", server.url, pace.overrides(), PROMPT_TOKENS, stack)
    crew = stack.enter_context(Crew(folder / "logs", trainer.address, pace.step_seconds, pace.step_tokens))
    return server, trainer, crew


def _rate(batches: Sequence[Batch]) -> float | None:
    """Groups per second from the first batch to the last; None with fewer than two."""
    if len(batches) < 2:
        return None
    groups = sum(len(batch.groups) for batch in batches[1:])
    return round(groups / (batches[-1].at - batches[0].at), 2)
