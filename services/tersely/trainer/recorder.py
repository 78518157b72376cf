"""Writes down what a step did: events, samples and the figures that people watch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from tersely.config import Recipe
from tersely.telemetry.events import EventLog, read_events
from tersely.telemetry.samples import SampleLog, read_samples
from tersely.trainer.health import StepHealth
from tersely.trainer.history import Rollback
from tersely.trainer.mismatch import mismatch_by_node
from tersely.trainer.samples import batch_figures, oldest_version, sample_rows
from tersely.trainer.status import Status
from tersely.types import GroupId, PolicyVersion
from tersely.v1 import group_pb2

_NOT_FIGURES = ("advantages", "seconds", "group_mismatch")


class Recorder:
    """Keeps events.jsonl, samples.jsonl and the status in step with the learner.

    Args:
        events: The event log.
        samples: The samples file.
        status: What the world sees.
        recipe: Says which stage a step belongs to.

    What an earlier trainer of the run recorded before it died is not recorded again.
    """

    def __init__(self, events: EventLog, samples: SampleLog, status: Status, recipe: Recipe) -> None:
        self._events = events
        self._samples = samples
        self._status = status
        self._recipe = recipe
        self._trained: set[str] = set()
        self._finished: set[int] = set()
        self._stages: set[int] = set()
        self._evaluated: set[tuple[str, str]] = set()
        self._dropped: set[str] = set()
        self._rows: dict[str, set[int]] = {}  # samples written, per group that was not trained on
        self._fallen: Counter[str] = Counter()  # groups that fell out since the last step, by outcome
        for event in read_events(events.path):
            if event["kind"] == "group_trained":
                self._trained.add(event["group_id"])
            elif event["kind"] == "step_finished":
                self._finished.add(event["step"])
                self._fallen.clear()
            elif event["kind"] in ("group_no_signal", "group_stale"):
                self._dropped.add(event["group_id"])
                self._fallen[event["kind"].removeprefix("group_")] += 1
            elif event["kind"] == "stage_began":
                self._stages.add(event["step"])
            elif event["kind"] == "evaluation_finished":
                self._evaluated.add((event["name"], event["weights_sha256"]))
        for row in read_samples(samples.path):
            if row["outcome"] != "evaluation" and row["group_id"] not in self._trained:
                self._rows.setdefault(row["group_id"], set()).add(row["sample_index"])

    def stage(self, step: int) -> None:
        """Tells which stage the step to come belongs to, and writes it down where a stage begins."""
        name = self._recipe.stage_name(step)
        self._status.update(stage=name)
        first = name is not None and (step == 1 or self._recipe.stage_name(step - 1) != name)
        if first and step not in self._stages:
            self._stages.add(step)
            self._events.write("stage_began", step=step, name=name, weights=self._recipe.reward_weights(step))

    def trained(
        self,
        step: int,
        groups: Sequence[group_pb2.ScoredGroup],
        health: StepHealth,
        *,
        sampled_at: PolicyVersion,
        made: PolicyVersion,
        seconds: Mapping[str, float],
        dropped: int,
        replayed: bool = False,
    ) -> dict[str, Any]:
        """Records a trained batch, unless an earlier trainer of the run did.

        Args:
            step: Its number, from 1.
            groups: The batch.
            health: What the learner measured.
            sampled_at: Version that was current when the batch was formed; staleness counts from it.
            made: Version of the weights after the step.
            seconds: Duration per phase of the loop; the learner's own phases are added.
            dropped: Groups that fell out on the way to this batch.
            replayed: Whether the batch was taken from the log after a restart.

        Returns:
            The figures of the step; empty where they were recorded before.
        """
        if step in self._finished:
            return {}
        with_rewards = self._fallen["no_signal"] + len(groups)
        lags = [sampled_at - oldest_version(group) for group in groups]
        for group in groups:
            prompt = group.group.prompt
            if prompt.group_id in self._trained:
                continue
            # Before the event: where there is an event, an earlier trainer left nothing to be written.
            advantages = health.advantages[GroupId(prompt.group_id)]
            self._write_rows(sample_rows(group, step=step, outcome="trained", advantages=advantages))
            self._rows.pop(prompt.group_id, None)
            self._events.write(
                "group_trained",
                group_id=prompt.group_id,
                issue_number=prompt.issue_number,
                step=step,
                policy_version=oldest_version(group),
            )
        figures: dict[str, Any] = {
            "step": step,
            "policy_version": made,
            **batch_figures(groups),
            **{key: value for key, value in asdict(health).items() if key not in _NOT_FIGURES},
            "mismatch_by_node": mismatch_by_node(groups, health.group_mismatch, sampled_at),
            "staleness": sum(lags) / len(lags),
            "dropped_groups": dropped,
            "zero_variance": self._fallen["no_signal"] / with_rewards,
            "stale_share": self._fallen["stale"] / (self._fallen["stale"] + with_rewards),
            "groups": len(groups),
            "seconds": {**seconds, **health.seconds},
            "step_seconds": sum(seconds.values()),
            "replayed": replayed,
        }
        if self._recipe.stages:
            figures["stage"] = self._recipe.stage_name(step)
            figures["reward_weights"] = self._recipe.reward_weights(step)
        self._fallen.clear()
        self._events.write("step_finished", **figures)
        self._status.update(step=step, policy_version=made, last_step=figures)
        return figures

    def rolled_back(self, rollback: Rollback) -> None:
        """Records that the learner took over an earlier state.

        Args:
            rollback: As it stands in the log.
        """
        self._events.write("rolled_back", **rollback_facts(rollback))
        self._status.update(policy_version=rollback.label.policy_version)

    def evaluated(self, result: Mapping[str, Any]) -> None:
        """Records an evaluation and its completions, once.

        Args:
            result: What evaluation-NAME.json holds.
        """
        key = (result["name"], result["weights_sha256"])
        if key in self._evaluated:
            return
        self._evaluated.add(key)
        # An earlier trainer may have died among the rows of this very evaluation.
        known = {
            (row["group_id"], row["sample_index"], row["policy_version"])
            for row in read_samples(self._samples.path)
            if row.get("evaluation") == result["name"]
        }
        for row in result["rows"]:
            if (row["group_id"], row["sample_index"], row["policy_version"]) not in known:
                self._samples.write(**row)
        self._events.write("evaluation_finished", **{name: value for name, value in result.items() if name != "rows"})

    def dropped(self, group: group_pb2.ScoredGroup, outcome: str, step: int) -> None:
        """Keeps the samples of a group that is not trained on, unless they are kept already.

        Args:
            group: The group.
            outcome: Why, as in the ledger.
            step: Step that was being collected for.
        """
        group_id = group.group.prompt.group_id
        if group_id not in self._dropped:
            self._dropped.add(group_id)
            self._fallen[outcome] += 1
        self._write_rows(sample_rows(group, step=step, outcome=outcome, advantages=None))

    def _write_rows(self, rows: Iterable[Mapping[str, Any]]) -> None:
        for row in rows:
            known = self._rows.setdefault(row["group_id"], set())
            if row["sample_index"] not in known:
                self._samples.write(**row)
                known.add(row["sample_index"])


def rollback_facts(rollback: Rollback) -> dict[str, Any]:
    """Fields of a `rolled_back` event."""
    return {
        "step": rollback.step,
        "to_step": rollback.to_step,
        "policy_version": rollback.label.policy_version,
        "weights_sha256": rollback.label.weights_sha256,
        "reason": rollback.reason,
    }
