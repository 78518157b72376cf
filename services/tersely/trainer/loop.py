"""The training loop: collect a batch, log it, let go of it in Redis, learn from it, publish what was learned."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import structlog

from tersely.config import Recipe
from tersely.data.prompts import PreparedPrompt
from tersely.errors import NoSignal, RedisOutOfMemory, RedisUnreachable
from tersely.node.drain import DrainSignal
from tersely.telemetry.events import EventLog
from tersely.testing.faultpoints import reach
from tersely.trainer.checkpoint import write_checkpoint
from tersely.trainer.collector import Collector
from tersely.trainer.evaluation import Evaluation, EvaluationDesk
from tersely.trainer.issuing import Issuer
from tersely.trainer.learner import Learner
from tersely.trainer.recorder import Recorder
from tersely.trainer.resume import Position, commit_version
from tersely.trainer.ring import Arrival, Ring
from tersely.trainer.run_directory import RunDirectory
from tersely.trainer.samples import training_group
from tersely.trainer.status import Status
from tersely.trainer.wal import WriteAheadLog
from tersely.types import PolicyVersion, WeightsLabel
from tersely.v1 import log_pb2
from tersely.weights.store import SnapshotStore

log = structlog.get_logger(__name__)

_POLL_SECONDS = 0.25
_LOOK_FOR_LOST_SECONDS = 3.0
_REDIS_RETRY_SECONDS = 1.0
T = TypeVar("T")


class Every:
    """Says once in a while that it is time."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._next = time.monotonic() + seconds

    def due(self) -> bool:
        """True when the time is over since the last True, or since the beginning."""
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + self._seconds
        return True


@dataclass(frozen=True, slots=True)
class Parts:
    """What the loop works with."""

    recipe: Recipe
    directory: RunDirectory
    wal: WriteAheadLog
    ring: Ring
    issuer: Issuer
    collector: Collector
    desk: EvaluationDesk
    learner: Learner
    store: SnapshotStore
    events: EventLog
    recorder: Recorder
    status: Status
    drain: DrainSignal
    eval_prompts: Sequence[PreparedPrompt]


class TrainingLoop:
    """One run from where it stands to its last step, or to a drain.

    Args:
        parts: What it works with.
        position: Steps trained, and the label of the weights the learner holds.
        initial: Label of version 0.
        highest_version: Highest version number ever given out.
    """

    def __init__(self, parts: Parts, position: Position, initial: WeightsLabel, highest_version: PolicyVersion) -> None:
        self._parts = parts
        self._step = position.step
        self._label = position.label
        self._initial = initial
        self._highest_version = highest_version
        self._without_signal = 0
        self._checkpointed_step = position.checkpointed_step
        self._waiting_for = ""
        self._redis_failed = False

    @property
    def step(self) -> int:
        """Steps trained."""
        return self._step

    @property
    def label(self) -> WeightsLabel:
        """Label of the weights last published."""
        return self._label

    def run(self) -> bool:
        """Trains to the end; False when a drain came first. Either way the state is on disk.

        Raises:
            NoSignal, TrainerSuperseded.
        """
        parts = self._parts
        steps = parts.recipe.run.steps
        if self._step > 0 or steps == 0:
            self._evaluate("before", self._initial)
        while self._step < steps and not parts.drain.is_set():
            self._one_step()
            if self._step == 1:
                self._evaluate("before", self._initial)
        if parts.drain.is_set():
            self._waiting_for = ""
            parts.status.update(state="draining", waiting_for=None)
        finished = self._step >= steps
        if finished:
            parts.collector.close_out()
            self._evaluate("after", self._label)
        if self._checkpointed_step < self._step:
            self._checkpoint()
        return finished and not parts.drain.is_set()

    def _one_step(self) -> None:
        parts = self._parts
        self._waiting_for = "groups to be generated and scored"
        parts.status.update(state="training", waiting_for=self._waiting_for)
        began = time.monotonic()
        batch = self._collect()
        waited = time.monotonic()
        if batch is None:
            return
        if not batch:
            self._no_signal()
            return
        self._without_signal = 0
        step = self._step + 1
        groups = [arrival.group for arrival in batch]
        parts.wal.append(log_pb2.LogRecord(batch_formed=log_pb2.BatchFormed(step=step, groups=groups)), sync=True)
        parts.collector.remove(batch)
        self._with_redis(lambda: parts.ring.acknowledge([arrival.lease for arrival in batch]))
        reach("after_ack")
        logged = time.monotonic()
        parts.status.update(waiting_for=f"the learner, step {step}")
        health = parts.learner.train([training_group(group) for group in groups], step)
        learned = time.monotonic()
        reach("after_step")
        sampled_at = self._label.policy_version
        self._publish(step)
        published = time.monotonic()
        parts.recorder.trained(
            step,
            groups,
            health,
            sampled_at=sampled_at,
            made=self._label,
            seconds={
                "wait": waited - began,
                "log": logged - waited,
                "learn": learned - logged,
                "publish": published - learned,
            },
            dropped=parts.collector.dropped_this_step,
        )
        reach("after_record")
        if step % parts.recipe.run.checkpoint_every == 0:
            self._checkpoint()

    def _collect(self) -> list[Arrival] | None:
        """A batch, an empty list when all signal is gone, or None when a drain came first."""
        parts = self._parts
        parts.collector.begin_step(self._label)
        look = Every(_LOOK_FOR_LOST_SECONDS)

        def gather() -> list[Arrival] | None:
            if look.due():
                # A reply lost on the way leaves groups with us that we never saw.
                parts.collector.take_again()
                parts.collector.resend_lost()
            parts.collector.top_up(parts.recipe.run.steps - self._step)
            parts.collector.poll(_POLL_SECONDS)
            return parts.collector.batch()

        while not parts.drain.is_set():
            batch = self._with_redis(gather)
            if batch is not None:
                if 0 < len(batch) < parts.recipe.run.groups_per_step:
                    parts.events.write("alarm", name="batch_short", step=self._step + 1, groups=len(batch))
                return batch
        return None

    def _with_redis(self, action: Callable[[], T]) -> T | None:
        """Does something with Redis; None when the server fails it, after a pause.

        What was not sent or taken then is found again: from the books, and from what this consumer still holds.
        """
        parts = self._parts
        try:
            if self._redis_failed:
                parts.collector.take_again()
                self._redis_failed = False
            result = action()
        except (RedisUnreachable, RedisOutOfMemory) as error:
            self._redis_failed = True
            log.warning("redis fails the trainer; trying again", error=error.message)
            parts.status.update(waiting_for=f"Redis: {error.message}")
            parts.drain.wait(_REDIS_RETRY_SECONDS)
            return None
        parts.status.update(waiting_for=self._waiting_for)
        return result

    def _publish(self, step: int) -> None:
        parts = self._parts
        parts.directory.check_incarnation()
        self._highest_version = PolicyVersion(self._highest_version + 1)
        prepared = parts.store.prepare(self._highest_version, parts.learner.published())
        commit_version(parts.wal, step, prepared.label)
        parts.collector.know_label(prepared.label)
        self._label = parts.store.announce(prepared)
        reach("after_publish")
        self._step = step
        parts.events.write(
            "version_published",
            step=step,
            policy_version=self._label.policy_version,
            weights_sha256=self._label.weights_sha256,
        )

    def _no_signal(self) -> None:
        parts = self._parts
        self._without_signal += 1
        parts.events.write("alarm", name="no_signal", step=self._step + 1, times_in_a_row=self._without_signal)
        log.warning("no group of this step had a signal; no version is made", times_in_a_row=self._without_signal)
        limit = parts.recipe.run.max_steps_without_signal
        if self._without_signal >= limit:
            raise NoSignal(
                f"{limit} batches in a row had no group whose rewards differ: there is nothing to learn from.",
                "Look at the run's samples.jsonl: are completions all alike or all cut off? Raise run.group_size or"
                " sampling.temperature, or check the rewards.",
            )

    def _evaluate(self, name: str, label: WeightsLabel) -> None:
        """Runs an evaluation to its end, unless it is on disk already, or a drain comes first."""
        parts = self._parts
        done = parts.directory.read_json(f"evaluation-{name}.json")
        if not parts.eval_prompts or parts.drain.is_set():
            return
        if done is not None and done["weights_sha256"] == label.weights_sha256:
            return
        evaluation = Evaluation(name, label, parts.eval_prompts)
        self._waiting_for = f"evaluation {name!r} at version {label.policy_version}"
        parts.store.pin(label)
        parts.desk.current = evaluation
        self._with_redis(lambda: evaluation.send(parts.issuer, parts.ring))
        look = Every(_LOOK_FOR_LOST_SECONDS)

        def gather() -> None:
            if look.due():
                parts.collector.take_again()
                evaluation.resend_lost(parts.issuer, parts.ring)
            parts.collector.poll(_POLL_SECONDS)

        while not evaluation.complete and not parts.drain.is_set():
            progress = {"name": name, "done": evaluation.done, "of": evaluation.of}
            parts.status.update(state="evaluating", evaluation=progress)
            self._with_redis(gather)
        parts.desk.current = None
        parts.store.unpin(label)
        if name == "before":
            parts.store.unpin(self._initial)
        parts.status.update(evaluation=None)
        if evaluation.complete:
            result = evaluation.result()
            parts.directory.write_json(f"evaluation-{name}.json", result)
            parts.events.write("evaluation_finished", **{key: value for key, value in result.items() if key != "rows"})

    def _checkpoint(self) -> None:
        parts = self._parts
        parts.status.update(waiting_for="the checkpoint to be written")
        began = time.monotonic()
        tensors, learner = parts.learner.state()
        path = write_checkpoint(
            parts.directory.checkpoints,
            step=self._step,
            policy_version=self._label.policy_version,
            weights_sha256=self._label.weights_sha256,
            tensors=tensors,
            learner=learner,
            keep=parts.recipe.run.keep_checkpoints,
        )
        self._checkpointed_step = self._step
        parts.events.write("checkpoint_written", step=self._step, path=path.name, seconds=time.monotonic() - began)
