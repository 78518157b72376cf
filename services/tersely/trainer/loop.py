"""The training loop: collect a batch, log it, let go of it in Redis, learn from it, publish what was learned."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import structlog

from tersely.config import Recipe
from tersely.data.prompts import PreparedPrompt
from tersely.errors import NoSignal
from tersely.node.drain import DrainSignal
from tersely.telemetry.events import EventLog
from tersely.telemetry.samples import SampleLog
from tersely.trainer.checkpoint import write_checkpoint
from tersely.trainer.collector import Collector, staleness
from tersely.trainer.evaluation import Evaluation, EvaluationDesk
from tersely.trainer.issuing import Issuer
from tersely.trainer.learner import Learner
from tersely.trainer.ledger import Ledger
from tersely.trainer.resume import Position, commit_version
from tersely.trainer.ring import Arrival, Ring
from tersely.trainer.run_directory import RunDirectory
from tersely.trainer.samples import batch_figures, sample_rows, training_group
from tersely.trainer.status import Status
from tersely.trainer.wal import WriteAheadLog
from tersely.types import PolicyVersion, WeightsLabel
from tersely.v1 import log_pb2
from tersely.weights.store import SnapshotStore

log = structlog.get_logger(__name__)

_POLL_SECONDS = 0.25
_LOOK_FOR_LOST_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class Parts:
    """What the loop works with."""

    recipe: Recipe
    directory: RunDirectory
    wal: WriteAheadLog
    ledger: Ledger
    ring: Ring
    issuer: Issuer
    collector: Collector
    desk: EvaluationDesk
    learner: Learner
    store: SnapshotStore
    events: EventLog
    samples: SampleLog
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
        self._checkpointed_step = position.step

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
        finished = self._step >= steps
        if finished:
            parts.collector.close_out()
            self._evaluate("after", self._label)
        if self._checkpointed_step < self._step:
            self._checkpoint()
        return finished and not parts.drain.is_set()

    def _one_step(self) -> None:
        parts = self._parts
        parts.status.update(state="training", waiting_for="groups to be generated and scored")
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
        parts.ring.acknowledge([arrival.lease for arrival in batch])
        parts.collector.remove(batch)
        logged = time.monotonic()
        parts.status.update(waiting_for=f"the learner, step {step}")
        health = parts.learner.train([training_group(group) for group in groups], step)
        learned = time.monotonic()
        lags = staleness(batch, self._label)
        self._publish(step)
        published = time.monotonic()
        figures: dict[str, Any] = {
            "step": step,
            "policy_version": self._label.policy_version,
            **batch_figures(groups),
            **{key: value for key, value in asdict(health).items() if key not in ("advantages", "seconds")},
            "staleness": sum(lags.values()) / len(lags),
            "zero_variance_groups": parts.collector.dropped_this_step,
            "groups": len(batch),
            "seconds": {
                "wait": waited - began,
                "log": logged - waited,
                **health.seconds,
                "learn": learned - logged,
                "publish": published - learned,
            },
            "step_seconds": published - began,
        }
        self._record(step, batch, health.advantages, figures)
        if step % parts.recipe.run.checkpoint_every == 0:
            self._checkpoint()

    def _collect(self) -> list[Arrival] | None:
        """A batch, an empty list when all signal is gone, or None when a drain came first."""
        parts = self._parts
        parts.collector.begin_step(self._label)
        next_look = time.monotonic() + _LOOK_FOR_LOST_SECONDS
        while not parts.drain.is_set():
            if time.monotonic() > next_look:
                parts.collector.resend_lost()
                next_look = time.monotonic() + _LOOK_FOR_LOST_SECONDS
            parts.collector.top_up(parts.recipe.run.steps - self._step)
            parts.collector.poll(_POLL_SECONDS)
            batch = parts.collector.batch()
            if batch is not None:
                if 0 < len(batch) < parts.recipe.run.groups_per_step:
                    parts.events.write("alarm", name="batch_short", step=self._step + 1, groups=len(batch))
                return batch
        return None

    def _publish(self, step: int) -> None:
        parts = self._parts
        parts.directory.check_incarnation()
        self._highest_version = PolicyVersion(self._highest_version + 1)
        prepared = parts.store.prepare(self._highest_version, parts.learner.published())
        commit_version(parts.wal, step, prepared.label)
        self._label = parts.store.announce(prepared)
        self._step = step
        parts.events.write(
            "version_published",
            step=step,
            policy_version=self._label.policy_version,
            weights_sha256=self._label.weights_sha256,
        )

    def _record(
        self, step: int, batch: list[Arrival], advantages: dict[Any, tuple[float | None, ...]], figures: dict[str, Any]
    ) -> None:
        parts = self._parts
        for arrival in batch:
            prompt = arrival.group.group.prompt
            version = arrival.group.group.completions[0].version_spans[0].weights.policy_version
            parts.events.write(
                "group_trained",
                group_id=prompt.group_id,
                issue_number=prompt.issue_number,
                step=step,
                policy_version=version,
            )
            rows = sample_rows(arrival.group, step=step, outcome="trained", advantages=advantages[prompt.group_id])
            for row in rows:
                parts.samples.write(**row)
        parts.events.write("step_finished", **figures)
        parts.status.update(step=step, policy_version=self._label.policy_version, last_step=figures)

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
        if not parts.eval_prompts or parts.directory.read_json(f"evaluation-{name}.json") is not None:
            return
        evaluation = Evaluation(name, label, parts.eval_prompts)
        parts.store.pin(label)
        parts.desk.current = evaluation
        evaluation.send(parts.issuer, parts.ring)
        next_look = time.monotonic() + _LOOK_FOR_LOST_SECONDS
        while not evaluation.complete and not parts.drain.is_set():
            parts.status.update(
                state="evaluating",
                waiting_for=f"evaluation {name!r} at version {label.policy_version}",
                evaluation={"name": name, "done": evaluation.done, "of": evaluation.of},
            )
            if time.monotonic() > next_look:
                evaluation.resend_lost(parts.issuer, parts.ring)
                next_look = time.monotonic() + _LOOK_FOR_LOST_SECONDS
            parts.collector.poll(_POLL_SECONDS)
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
