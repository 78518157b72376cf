"""The training loop: collect a batch, log it, let go of it in Redis, learn from it, publish what was learned."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import structlog

from tersely.errors import NoSignal
from tersely.testing.faultpoints import reach
from tersely.trainer.alarm_desk import AlarmDesk
from tersely.trainer.alarms import AlarmWatch
from tersely.trainer.evaluating import Evaluator
from tersely.trainer.history import History
from tersely.trainer.keeper import CheckpointKeeper
from tersely.trainer.parts import Every, Parts, Standing
from tersely.trainer.patience import Patience
from tersely.trainer.publishing import Publisher
from tersely.trainer.resume import Position
from tersely.trainer.ring import Arrival
from tersely.trainer.samples import training_group
from tersely.trainer.watchdog.pace import COLLECT, LEARN, LOG, PUBLISH
from tersely.types import PolicyVersion, WeightsLabel
from tersely.v1 import group_pb2, log_pb2

log = structlog.get_logger(__name__)

_POLL_SECONDS = 0.25
_LOOK_FOR_LOST_SECONDS = 3.0


class TrainingLoop:
    """One run from where it stands to its last step, or to a drain.

    Args:
        parts: What it works with.
        position: Steps trained, and the label of the weights the learner holds.
        history: The run's log so far; versions and roll-backs are added as they are made.
        initial: Label of version 0.
    """

    def __init__(self, parts: Parts, position: Position, history: History, initial: WeightsLabel) -> None:
        self._parts = parts
        self._history = history
        history.initial = initial
        self._standing = Standing(
            step=position.step,
            settled_label=position.label,
            version=position.label.policy_version,
            highest_version=PolicyVersion(max(history.highest_version, position.label.policy_version)),
            checkpointed_step=position.checkpointed_step,
            roll_backs=len(history.rollbacks),
            rolled_back_at=max(history.rollbacks, default=0),
        )
        self._publisher = Publisher(parts, self._standing, history)
        self._patience = Patience(parts)
        self._keeper = CheckpointKeeper(parts, self._standing, history)
        self._evaluator = Evaluator(parts, self._standing, self._patience, self._keeper, initial)
        self._alarms = AlarmDesk(
            parts, self._standing, self._keeper, history, AlarmWatch(parts.recipe), self._evaluator.settle
        )
        self._take_over()

    @property
    def step(self) -> int:
        """Steps trained."""
        return self._standing.step

    @property
    def label(self) -> WeightsLabel:
        """Label of the weights last published."""
        return self._standing.label

    @property
    def stopped_by(self) -> str:
        """Why the run was stopped before its end, for people; empty: by a drain from outside, or not at all."""
        return self._standing.stopped_by

    def run(self) -> bool:
        """Trains to the end; False when a drain came first. Either way the state is on disk.

        Raises:
            NoSignal, TrainerSuperseded.
        """
        try:
            return self._run()
        finally:
            self._publisher.close()

    def _run(self) -> bool:
        parts, standing = self._parts, self._standing
        steps = parts.recipe.run.steps
        if standing.step > 0 or steps == 0:
            self._evaluator.before()
            self._evaluator.resume(self._history)
            self._keeper.catch_up()
            self._alarms.resume()
            self._evaluator.between()
        while standing.step < steps and not parts.drain.is_set():
            self._one_step()
            if standing.step == 1:
                self._evaluator.before()
            self._evaluator.between()
        if parts.drain.is_set():
            parts.status.update(state="draining", waiting_for=None)
        finished = standing.step >= steps
        if finished:
            parts.collector.close_out()
        self._keeper.ensure()
        if finished:
            self._evaluator.settle()
            self._evaluator.after()
            parts.collector.close_out()
        self._keeper.choose_best()
        self._publisher.settle()
        return finished and not parts.drain.is_set()

    def _take_over(self) -> None:
        """Tells the collector what an earlier trainer of the run knew."""
        history, collector = self._history, self._parts.collector
        collector.know_only(history.known_labels)
        collector.begin_step(self._standing.label, self._standing.step + 1)
        # A try that comes to nothing issues its credits and all its refills, and each of those groups falls out.
        recipe = self._parts.recipe
        left = (recipe.run.steps - self._standing.step) * recipe.run.groups_per_step
        per_try = min(recipe.credits, left) + recipe.run.max_refill
        self._standing.without_signal, dropped = divmod(history.dropped_since_batch, max(1, per_try))
        collector.begin_refills(dropped)

    def _one_step(self) -> None:
        parts, standing = self._parts, self._standing
        step = standing.step + 1
        parts.recorder.stage(step)
        self._patience.wait_for("groups to be generated and scored", state="training")
        began = time.monotonic()
        with parts.pace.phase(COLLECT, step):
            batch = self._collect()
        waited = time.monotonic()
        if batch is None:
            return
        if not batch:
            self._no_signal()
            return
        standing.without_signal = 0
        groups = [arrival.group for arrival in batch]
        dropped = parts.collector.dropped_this_step
        with parts.pace.phase(LOG, step):
            parts.wal.append(log_pb2.LogRecord(batch_formed=log_pb2.BatchFormed(step=step, groups=groups)), sync=True)
            parts.collector.remove(batch)
            self._patience.attempt(lambda: parts.ring.acknowledge([arrival.lease for arrival in batch]))
        reach("after_ack")
        logged = time.monotonic()
        parts.status.update(waiting_for=f"the learner, step {step}")
        with parts.pace.phase(LEARN, step):
            health = parts.learner.train([training_group(group) for group in groups], step)
        learned = time.monotonic()
        reach("after_step")
        sampled_at = standing.version
        with parts.pace.phase(PUBLISH, step):
            self._publisher.publish(step)
        published = time.monotonic()
        figures = parts.recorder.trained(
            step,
            groups,
            health,
            sampled_at=sampled_at,
            made=standing.version,
            seconds={
                "wait": waited - began,
                "log": logged - waited,
                "learn": learned - logged,
                "publish": published - learned,
            },
            dropped=dropped,
        )
        reach("after_record")
        self._after_step(figures, groups)

    def _after_step(self, figures: Mapping[str, Any], groups: Sequence[group_pb2.ScoredGroup]) -> None:
        if self._standing.step % self._parts.recipe.run.checkpoint_every == 0:
            self._keeper.write()
        if figures:  # else an earlier trainer has looked at them
            self._alarms.after_step(figures, groups)

    def _collect(self) -> list[Arrival] | None:
        """A batch, an empty list when all signal is gone, or None when a drain came first."""
        parts, standing = self._parts, self._standing
        if parts.recipe.synchronous:
            parts.collector.begin_step(standing.label, standing.step + 1)
        else:
            parts.collector.expect_version(standing.version, standing.step + 1)
        look = Every(_LOOK_FOR_LOST_SECONDS)

        def gather() -> list[Arrival] | None:
            self._publisher.check()
            if look.due():
                # A reply lost on the way leaves groups with us that we never saw.
                parts.collector.take_again()
                parts.collector.resend_lost()
            parts.collector.top_up(parts.recipe.run.steps - standing.step)
            self._evaluator.tend()  # after the training groups, which come first
            parts.collector.poll(_POLL_SECONDS)
            parts.pace.arrived(parts.collector.arrived)
            return parts.collector.batch()

        while not parts.drain.is_set():
            batch = self._patience.attempt(gather)
            if batch is not None:
                if 0 < len(batch) < parts.recipe.run.groups_per_step:
                    parts.events.write("alarm", name="batch_short", step=standing.step + 1, groups=len(batch))
                return batch
        return None

    def _no_signal(self) -> None:
        parts, standing = self._parts, self._standing
        standing.without_signal += 1
        parts.collector.begin_refills()
        parts.events.write("alarm", name="no_signal", step=standing.step + 1, times_in_a_row=standing.without_signal)
        log.warning("no group of this step had a signal; no version is made", times_in_a_row=standing.without_signal)
        limit = parts.recipe.run.max_steps_without_signal
        if standing.without_signal >= limit:
            raise NoSignal(
                f"{limit} batches in a row had no group whose rewards differ: there is nothing to learn from.",
                "Look at the run's samples.jsonl: are completions all alike or all cut off? Raise run.group_size or"
                " sampling.temperature, or check the rewards.",
            )
