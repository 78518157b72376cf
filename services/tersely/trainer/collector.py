"""Brings a batch together: issues groups as credits allow, judges what comes back, refills what falls out.

Credits: at most ``(max_staleness + 1) * groups_per_step`` training groups are open at once (on their way, or accepted
and waiting for their batch). A group that falls out frees its credit, which its replacement inherits; after
`max_refill` replacements in one step no more are sent, and the step trains on what it has.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable

import structlog

from tersely.config import Recipe
from tersely.grpo.group_advantages import has_signal
from tersely.telemetry.events import EventLog
from tersely.trainer.evaluation import EvaluationDesk
from tersely.trainer.issuing import Issuer
from tersely.trainer.ledger import Issue, Ledger, Outcome
from tersely.trainer.ring import EVALUATION_PREFIX, Arrival, Ring
from tersely.trainer.samples import oldest_version, reward_columns
from tersely.trainer.second_tries import SecondTries
from tersely.trainer.wal import WriteAheadLog
from tersely.types import GroupId, PolicyVersion, WeightsLabel
from tersely.v1 import common_pb2, log_pb2

log = structlog.get_logger(__name__)

_OUTCOMES = {
    Outcome.STALE: log_pb2.GROUP_OUTCOME_STALE,
    Outcome.NO_SIGNAL: log_pb2.GROUP_OUTCOME_NO_SIGNAL,
    Outcome.QUARANTINED: log_pb2.GROUP_OUTCOME_QUARANTINED,
}
_SENT_TOGETHER = 32
_QUARANTINE_SECONDS = 0.25
_NO_SIGNAL = "all weighted rewards are equal, or fewer than two could be scored"


class Collector:
    """The life of training groups between issue and batch.

    Args:
        recipe: Settings.
        issuer: Makes groups.
        ledger: The books.
        ring: The streams.
        wal: The write-ahead log.
        events: The event log.
        desk: Takes evaluation groups as they come by.
        on_dropped: Told of each arrival that falls out, with its outcome (for the samples file); of one whose copy
            comes again, again.
    """

    def __init__(
        self,
        recipe: Recipe,
        issuer: Issuer,
        ledger: Ledger,
        ring: Ring,
        wal: WriteAheadLog,
        events: EventLog,
        *,
        desk: EvaluationDesk,
        on_dropped: Callable[[Arrival, Outcome], None],
    ) -> None:
        self._recipe = recipe
        self._issuer = issuer
        self._ledger = ledger
        self._ring = ring
        self._wal = wal
        self._events = events
        self._desk = desk
        self._on_dropped = on_dropped
        self._second_tries = SecondTries(ring.decisions, ledger, events)
        self._weights: dict[str, float] = {}
        self._judged_by: dict[str, float] = {}
        self._accepted: dict[GroupId, Arrival] = {}
        self._labels: dict[PolicyVersion, str] = {}
        self._current: WeightsLabel | None = None
        self._version = PolicyVersion(0)
        self._missing: set[GroupId] = set()
        self._unsent: list[Issue] = []
        self._sending_broke = False
        self._looked_at_quarantine = -math.inf
        self._dropped_this_step = 0
        self.refills_exhausted = False
        self.arrived = 0
        """Groups that have come back, of any kind and whatever became of them; only grows."""

    def begin_step(self, current: WeightsLabel, step: int) -> None:
        """Groups that come in from now on are for a step.

        Args:
            current: The weights that it is sampled by (synchronous) or its groups' age counts from (asynchronous).
            step: Counts from 1; says which rewards have which weight.
        """
        self._current = current
        self._labels[current.policy_version] = current.weights_sha256
        self.expect_version(current.policy_version, step)

    def expect_version(self, version: PolicyVersion, step: int) -> None:
        """Groups that come in from now on are for a step of an asynchronous run.

        Args:
            version: That its groups' age counts from; `know_label` tells its hash before anybody samples with it.
            step: Counts from 1; says which rewards have which weight.
        """
        self._version = version
        self._weights = self._recipe.reward_weights(step)

    def begin_refills(self, dropped: int = 0) -> None:
        """Counts groups that fall out from here on: at a new batch, or at a second try for one that came to nothing.

        Args:
            dropped: How many fell out before a trainer took the run up again.
        """
        self._dropped_this_step = dropped
        self.refills_exhausted = False

    def know_label(self, label: WeightsLabel) -> None:
        """Registers weights whose samples may come in; any thread's call."""
        self._labels[label.policy_version] = label.weights_sha256

    def know_only(self, labels: Iterable[WeightsLabel]) -> None:
        """Registers these weights and no others: what others sampled goes stale, also what waits for its batch."""
        self._labels = {label.policy_version: label.weights_sha256 for label in labels}

    def accepted(self) -> tuple[GroupId, ...]:
        """Groups waiting for their batch."""
        return tuple(self._accepted)

    @property
    def outstanding(self) -> int:
        """Training groups whose return is awaited."""
        return len(self._ledger.open) - len(self._accepted)

    @property
    def dropped_this_step(self) -> int:
        """Groups that fell out since the last batch was formed, or since the last try for one."""
        return self._dropped_this_step

    def top_up(self, remaining_steps: int) -> None:
        """Issues as many groups as credits, the refill limit and the rest of the run allow."""
        per_step = self._recipe.run.groups_per_step
        wanted = min(self._recipe.credits, remaining_steps * per_step) - len(self._ledger.open)
        beyond = self._dropped_this_step - self._recipe.run.max_refill
        if beyond > 0:
            self.refills_exhausted = True
            wanted -= beyond
        self._send_unsent()
        for _ in range(wanted):
            number, quarantined = self._ledger.next_issue_number, self._second_tries.next()
            issue = self._issuer.issue(number) if quarantined is None else self._issuer.issue_again(quarantined, number)
            facts = {"group_id": issue.group_id, "issue_number": issue.issue_number, "prompt_id": issue.prompt_id}
            again = {"replay_of": issue.replay_of} if issue.replay_of else {}
            issued = log_pb2.GroupIssued(
                group_id=issue.group_id,
                issue_number=issue.issue_number,
                prompt_id=issue.prompt_id,
                replay_of=issue.replay_of,
            )
            # With one that is tried again, the machine may not forget that it was.
            self._wal.append(log_pb2.LogRecord(group_issued=issued), sync=bool(again))
            self._ledger.record_issue(issue)
            self._events.write("group_issued", **facts, **again)
            self._unsent.append(issue)
            if len(self._unsent) == _SENT_TOGETHER:
                self._send_unsent()
        self._send_unsent()

    def send(self, issue: Issue) -> None:
        """Puts an issued group (again) on its way."""
        required = self._current if self._recipe.synchronous else None
        self._ring.send(self._issuer.training_group(issue, required))

    def _send_unsent(self) -> None:
        """Sends what is booked and was not sent: just now, or before a failure of the server."""
        if not self._unsent:
            return
        # A server that failed may have taken the groups all the same, and have passed them on by now.
        there = self._ring.training_groups_in_streams() if self._sending_broke else set()
        required = self._current if self._recipe.synchronous else None
        self._unsent = [issue for issue in self._unsent if self._is_missing(issue.group_id, there)]
        self._sending_broke = True
        self._ring.send_many([self._issuer.training_group(issue, required) for issue in self._unsent])
        self._sending_broke = False
        self._unsent.clear()

    def _is_missing(self, group_id: GroupId, in_streams: Collection[GroupId]) -> bool:
        return group_id in self._ledger.open and group_id not in self._accepted and group_id not in in_streams

    def resend_lost(self) -> int:
        """Sends groups again that are open, not accepted, and in no stream: the server was wiped, or there was a crash.

        A group is only sent again when it was missing at two calls in a row, because one may be between two streams.
        A needless copy costs work and is counted as a duplicate; it is never trained on.
        """
        missing = self._ledger.missing(self._ring.training_groups_in_streams())
        lost = {group_id for group_id in missing if group_id not in self._accepted}
        again = lost & self._missing
        for group_id in again:
            issue = self._ledger.open[group_id]
            log.warning("group found in no stream, sent again", group_id=group_id, issue_number=issue.issue_number)
            self._events.write("group_resent", group_id=group_id, issue_number=issue.issue_number)
            self.send(issue)
            self._unsent = [unsent for unsent in self._unsent if unsent.group_id != group_id]
        self._missing = lost - again
        return len(again)

    def take_again(self) -> None:
        """Decides on what was taken before a restart or a failure of the server, and never got its decision."""
        waiting = {arrival.lease.entry_id for arrival in self._accepted.values()}
        self.take([arrival for arrival in self._ring.take_again() if arrival.lease.entry_id not in waiting])

    def poll(self, block_seconds: float) -> None:
        """Takes what has arrived and decides on it; waits up to `block_seconds` for the first."""
        arrivals = self._ring.take(64, block_seconds)
        self.take(arrivals)
        now = time.monotonic()
        if arrivals and now - self._looked_at_quarantine < _QUARANTINE_SECONDS:
            return
        self._looked_at_quarantine = now
        for quarantined in self._ring.newly_quarantined():
            self.arrived += 1
            if quarantined.group_id.startswith(EVALUATION_PREFIX):
                self._desk.quarantined(quarantined.group_id)
            elif quarantined.group_id not in self._accepted:  # a second copy may fail where the first did well
                self._drop(GroupId(quarantined.group_id), Outcome.QUARANTINED, quarantined.error_message)
        self._second_tries.look()

    def take(self, arrivals: list[Arrival]) -> None:
        """Decides on arrivals: evaluation, duplicate, dropped or accepted.

        Raises:
            TrainerSuperseded: They came while this process slept, and are a newer trainer's to decide on.
        """
        self._wal.check()
        self.arrived += len(arrivals)
        for arrival in arrivals:
            if arrival.group.group.prompt.purpose == common_pb2.GROUP_PURPOSE_EVALUATION:
                self._desk.take(arrival)
            else:
                self._take_training(arrival)

    def batch(self) -> list[Arrival] | None:
        """A complete batch in issue order, leaving the rest for later; None while it is not complete.

        An empty list means that all groups of the step fell out and none may be sent any more.
        """
        self._judge_again()
        per_step = self._recipe.run.groups_per_step
        if len(self._accepted) < per_step and not (self.refills_exhausted and self.outstanding == 0):
            return None
        ordered = sorted(self._accepted.values(), key=lambda arrival: arrival.group.group.prompt.issue_number)
        return ordered[:per_step]

    def remove(self, batch: list[Arrival]) -> None:
        """Takes a logged batch out of the waiting groups."""
        for arrival in batch:
            group_id = GroupId(arrival.group.group.prompt.group_id)
            del self._accepted[group_id]
            self._ledger.record_outcome(group_id, Outcome.TRAINED)
        self.begin_refills()

    def close_out(self) -> None:
        """At the end of a run: whatever is still open, here or on its way, will not be trained on."""
        for group_id in list(self._ledger.open):
            self._drop(group_id, Outcome.STALE, "the run ended", self._accepted.get(group_id))

    def _take_training(self, arrival: Arrival) -> None:
        prompt = arrival.group.group.prompt
        group_id = GroupId(prompt.group_id)
        if group_id in self._accepted or group_id not in self._ledger.open:
            self._ledger.duplicates += 1
            self._events.write("group_duplicate", group_id=group_id, issue_number=prompt.issue_number)
            outcome = self._ledger.outcome(group_id)
            if outcome in (Outcome.STALE, Outcome.NO_SIGNAL):
                # Decided on, but perhaps by a trainer that died before it kept the samples.
                self._on_dropped(arrival, outcome)
            self._ring.acknowledge([arrival.lease])
            return
        reason = self._label_fault(arrival)
        if reason:
            self._drop(group_id, Outcome.STALE, reason, arrival)
        elif not self._has_signal(arrival):
            self._drop(group_id, Outcome.NO_SIGNAL, _NO_SIGNAL, arrival)
        else:
            self._accepted[group_id] = arrival

    def _has_signal(self, arrival: Arrival) -> bool:
        return has_signal(reward_columns(arrival.group), self._weights, self._recipe.learner.combine)

    def _label_fault(self, arrival: Arrival) -> str:
        for completion in arrival.group.group.completions:
            for span in completion.version_spans:
                label = WeightsLabel.from_proto(span.weights)
                if self._labels.get(label.policy_version) != label.weights_sha256:
                    return f"sampled by {label}, which this run does not know"
        return self._staleness_fault(arrival)

    def _staleness_fault(self, arrival: Arrival) -> str:
        lag = self._version - oldest_version(arrival.group)
        if lag > self._recipe.run.max_staleness:
            return f"{lag} versions old, max_staleness is {self._recipe.run.max_staleness}"
        return ""

    def _judge_again(self) -> None:
        """Groups accepted for an earlier step may be too old by now, or have no signal under this step's weights."""
        reweighted = self._weights != self._judged_by
        self._judged_by = self._weights
        for group_id, arrival in list(self._accepted.items()):
            reason = self._label_fault(arrival)
            if reason:
                self._drop(group_id, Outcome.STALE, reason, arrival)
            elif reweighted and not self._has_signal(arrival):
                self._drop(group_id, Outcome.NO_SIGNAL, _NO_SIGNAL, arrival)

    def _drop(self, group_id: GroupId, outcome: Outcome, reason: str, arrival: Arrival | None = None) -> None:
        issue = self._ledger.open.get(group_id)
        if issue is None:
            return
        dropped = log_pb2.GroupDropped(group_id=group_id, outcome=_OUTCOMES[outcome], reason=reason)
        self._wal.append(log_pb2.LogRecord(group_dropped=dropped), sync=True)
        self._ledger.record_outcome(group_id, outcome)
        self._accepted.pop(group_id, None)
        self._dropped_this_step += 1
        if arrival is not None:
            self._on_dropped(arrival, outcome)
        self._events.write(f"group_{outcome}", group_id=group_id, issue_number=issue.issue_number, reason=reason)
        if arrival is not None:
            self._ring.acknowledge([arrival.lease])
