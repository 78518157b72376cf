"""What the run does about its alarms: says them, stops, or goes back to where all was well."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import structlog

from tersely.errors import CheckpointInvalid
from tersely.telemetry.events import read_events
from tersely.trainer.alarms import Alarm, AlarmWatch
from tersely.trainer.checkpoint import Checkpoint
from tersely.trainer.history import History, Rollback
from tersely.trainer.keeper import CheckpointKeeper
from tersely.trainer.parts import Parts, Standing
from tersely.trainer.publishing import prepare_version
from tersely.trainer.resume import commit_rollback
from tersely.v1 import group_pb2

log = structlog.get_logger(__name__)

MAX_ROLL_BACKS = 3
"""Times a run goes back to an earlier state before it stops instead: what has come three times comes again."""


class AlarmDesk:
    """Watches the figures of each step and acts by `alarms.action`.

    Args:
        parts: What the loop works with.
        standing: Where the run stands.
        keeper: Of checkpoints.
        history: The run's log; roll-backs are added to it.
        watch: Raises the alarms.
        settle: Waits for the evaluations under way; False: a drain came first. The best checkpoint, which the run goes
            back to, must not depend on which of them came in before the alarm.
    """

    def __init__(
        self,
        parts: Parts,
        standing: Standing,
        keeper: CheckpointKeeper,
        history: History,
        watch: AlarmWatch,
        settle: Callable[[], bool] = lambda: True,
    ) -> None:
        self._parts = parts
        self._standing = standing
        self._keeper = keeper
        self._history = history
        self._watch = watch
        self._settle = settle

    def resume(self) -> None:
        """Comes to the state that the log tells of, and does what the last trainer did not get to."""
        events = list(read_events(self._parts.events.path))
        # What earlier steps raise only now is raised by limits that were not those of the run then.
        missing = [alarm for alarm in self._watch.warm_up(events) if alarm.step == self._standing.step]
        for alarm in missing:
            self._say(alarm)
        left = _not_acted_on(events, self._standing.step)
        self._show()
        self._act([alarm.name for alarm in missing] + left)

    def after_step(self, figures: Mapping[str, Any], groups: Sequence[group_pb2.ScoredGroup]) -> None:
        """Looks at the step last trained, says what is wrong, and acts on it."""
        raised = self._watch.observe(figures, groups)
        for alarm in raised:
            self._say(alarm)
        self._show()
        self._act([alarm.name for alarm in raised])

    def _show(self) -> None:
        """Puts what is wrong now into the status."""
        self._parts.status.update(alarms=[asdict(alarm) for alarm in self._watch.active])

    def _say(self, alarm: Alarm) -> None:
        facts = asdict(alarm)
        self._parts.events.write("alarm", **facts)
        log.warning(alarm.message, alarm=alarm.name, cause=alarm.cause, setting=alarm.setting)

    def _act(self, names: Sequence[str]) -> None:
        parts, standing = self._parts, self._standing
        action = parts.recipe.alarms.action
        # After the last step there is nothing left to spoil.
        if not names or action == "warn" or standing.step >= parts.recipe.run.steps:
            return
        if standing.rolled_back_at == standing.step:
            return
        what = ", ".join(dict.fromkeys(names))
        if action == "stop":
            self._stop(f"alarm {what} at step {standing.step} (alarms.action is stop)")
            return
        if not self._settle():
            parts.events.write("roll_back_put_off", step=standing.step, alarms=list(names))
            return
        target = self._keeper.target()
        if standing.roll_backs >= MAX_ROLL_BACKS:
            self._stop(f"alarm {what} at step {standing.step}, after {MAX_ROLL_BACKS} roll-backs that did not help")
        elif target is None:
            self._stop(f"alarm {what} at step {standing.step}, and there is no earlier checkpoint to go back to")
        else:
            self._roll_back(target, what)

    def _stop(self, why: str) -> None:
        log.error("the run is stopped", reason=why)
        self._standing.stopped_by = why
        self._parts.status.update(stopped_by=why)
        self._parts.drain.set()

    def _roll_back(self, target: Checkpoint, why: str) -> None:
        """Takes over an earlier state under a new version number; the steps go on being counted."""
        parts, standing = self._parts, self._standing
        parts.directory.check_incarnation()
        parts.learner.load_state(target.tensors(), target.learner)
        prepared = prepare_version(parts.store, standing.next_version(), parts.learner)
        if prepared.label.weights_sha256 != target.weights_sha256:
            raise CheckpointInvalid(
                f"The state in {target.path} does not give the weights it was written with.",
                f"Delete the folder {target.path}, and go on with --resume.",
            )
        rollback = Rollback(standing.step, target.step, prepared.label, why)
        commit_rollback(parts.wal, self._history, rollback)
        # What the weights now left behind sampled must not teach those that take over.
        parts.collector.know_only(self._history.known_labels)
        standing.label = parts.store.announce(prepared)
        parts.collector.begin_step(standing.label, standing.step + 1)
        standing.roll_backs += 1
        standing.rolled_back_at = standing.step
        self._watch.roll_back(target.step)
        self._show()
        log.warning("rolled back", step=standing.step, to_step=target.step, reason=why)
        parts.recorder.rolled_back(rollback)


def _not_acted_on(events: Iterable[Mapping[str, Any]], step: int) -> list[str]:
    """Names of alarms raised at a step whose trainer ended before it could act on them."""
    names: list[str] = []
    put_off = False
    for event in events:
        if event["kind"] == "alarm" and "setting" in event and event.get("step") == step:
            names.append(str(event["name"]))
        elif event["kind"] == "roll_back_put_off" and event["step"] == step:
            put_off = True
        elif event["kind"] == "run_drained" and put_off:
            put_off = False
        elif event["kind"] in ("run_drained", "rolled_back"):
            names.clear()
    return names
