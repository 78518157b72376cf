"""The collector on a real server: credits, refill, duplicates, staleness, quarantine, and groups that got lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import redis

from tersely.config import Recipe
from tersely.data.prompts import PreparedPrompt
from tersely.telemetry.events import EventLog, read_events
from tersely.trainer.books import Books, balanced
from tersely.trainer.collector import Collector
from tersely.trainer.evaluation import Evaluation, EvaluationDesk
from tersely.trainer.history import fold
from tersely.trainer.issuing import Issuer
from tersely.trainer.ledger import Ledger, Outcome
from tersely.trainer.ring import Arrival, Ring
from tersely.trainer.wal import WriteAheadLog
from tersely.types import GroupId, PolicyVersion, RunId, WeightsLabel
from tersely.v1 import common_pb2, group_pb2

STOP = 9
V0 = WeightsLabel(PolicyVersion(0), "aa")
V1 = WeightsLabel(PolicyVersion(1), "bb")
V2 = WeightsLabel(PolicyVersion(2), "cc")


class Prompts:
    """Prompts that need no tokenizer."""

    def __len__(self) -> int:
        return 50

    def prompt_id(self, index: int) -> str:
        return f"p{index}"

    def prompt(self, index: int, target_tokens: int) -> PreparedPrompt:
        return PreparedPrompt(f"p{index}", (1, 2), "doc", f"ref of {target_tokens}", target_tokens, 0)


class Bench:
    """A collector with its surroundings, and hands to play worker and scorer."""

    def __init__(self, client: redis.Redis, folder: Path, sections: dict[str, Any], **run: int) -> None:
        self.recipe = Recipe.model_validate({"run": {"groups_per_step": 2, "group_size": 2, **run}, **sections})
        run_id = RunId("r-test")
        self.ledger = Ledger()
        self.ring = Ring(client, run_id, self.recipe.queue)
        self.ring.create()
        self.events_path = folder / "events.jsonl"
        self.events = EventLog(self.events_path)
        self.wal = WriteAheadLog(folder / "run.wal")
        self.desk = EvaluationDesk(self.ring)
        self.dropped: list[tuple[str, Outcome]] = []
        self.collector = Collector(
            self.recipe,
            Issuer(run_id, 1, self.recipe, Prompts(), (STOP,)),
            self.ledger,
            self.ring,
            self.wal,
            self.events,
            desk=self.desk,
            on_dropped=lambda arrival, outcome: self.dropped.append((arrival.group.group.prompt.group_id, outcome)),
        )
        self.collector.begin_step(V0, 1)

    def close(self) -> None:
        self.events.close()
        self.wal.close()

    def leased_prompts(self) -> list[group_pb2.PromptGroup]:
        """Takes all waiting prompt groups, as a worker would."""
        leases = self.ring.prompts.lease(100, 0)
        groups = [group_pb2.PromptGroup.FromString(lease.payload) for lease in leases]
        self.ring.prompts.ack(leases)
        return groups

    def answer(
        self,
        prompt: group_pb2.PromptGroup,
        rewards: tuple[float | None, ...] = (0.0, 1.0),
        label: WeightsLabel = V0,
        **others: tuple[float, ...],
    ) -> None:
        """Pushes a scored group, as the scorer would; rewards are those named length, others have their names."""
        scored = group_pb2.ScoredGroup(group=group_pb2.CompletionGroup(prompt=prompt))
        for index, reward in enumerate(rewards):
            completion = scored.group.completions.add(
                sample_index=index,
                token_ids=[5, STOP],
                behaviour_logprobs=[-1.0, -2.0],
                finish_reason=common_pb2.FINISH_REASON_STOP,
            )
            completion.version_spans.add(weights=label.to_proto(), first_token=0, token_count=2)
            row = scored.rewards.add()
            row.rewards.add(name="length", value=reward)
            for name, values in others.items():
                row.rewards.add(name=name, value=values[index])
        self.ring.scored.add(GroupId(prompt.group_id), scored.SerializeToString())

    def batch(self) -> list[Arrival] | None:
        self.collector.poll(0)
        return self.collector.batch()

    def books_balance(self) -> bool:
        return balanced(Books(self.ledger, self.ring, self.events).read())


@pytest.fixture
def make_bench(valkey_client: redis.Redis, tmp_path: Path):
    benches: list[Bench] = []

    def make(sections: dict[str, Any] | None = None, **run: int) -> Bench:
        benches.append(Bench(valkey_client, tmp_path, sections or {}, **run))
        return benches[-1]

    yield make
    for bench in benches:
        bench.close()


def numbers(batch: list[Arrival] | None) -> list[int]:
    assert batch is not None
    return [arrival.group.group.prompt.issue_number for arrival in batch]


def test_a_batch_is_complete_and_in_issue_order_however_groups_arrive(make_bench) -> None:
    bench = make_bench()
    bench.collector.top_up(10)
    first, second = bench.leased_prompts()
    assert first.required_weights.weights_sha256 == "aa"
    bench.answer(second)
    assert bench.batch() is None
    bench.answer(first)
    assert numbers(bench.batch()) == [0, 1]


def test_credits_bound_what_is_outstanding_and_the_end_of_the_run_bounds_it_too(make_bench) -> None:
    bench = make_bench(max_staleness=2)
    bench.collector.top_up(10)
    assert len(bench.leased_prompts()) == 6
    bench.collector.top_up(10)
    assert bench.leased_prompts() == []
    short = make_bench(max_staleness=2)
    short.collector.top_up(1)
    assert len(short.ledger.open) == 2


def test_a_group_without_signal_is_replaced_by_exactly_one_that_takes_the_next_number(make_bench) -> None:
    bench = make_bench()
    bench.collector.top_up(10)
    first, second = bench.leased_prompts()
    bench.answer(first, (0.5, 0.5))
    bench.answer(second, (None, 0.5))
    assert bench.batch() is None
    bench.collector.top_up(10)
    replacements = bench.leased_prompts()
    assert [group.issue_number for group in replacements] == [2, 3]
    for group in replacements:
        bench.answer(group)
    assert numbers(bench.batch()) == [2, 3]
    assert [outcome for _, outcome in bench.dropped] == [Outcome.NO_SIGNAL, Outcome.NO_SIGNAL]
    assert bench.books_balance()


def test_the_refill_limit_ends_a_step_short_or_empty(make_bench) -> None:
    bench = make_bench(max_refill=1)
    bench.collector.top_up(10)
    first, second = bench.leased_prompts()
    bench.answer(first, (0.5, 0.5))
    bench.answer(second, (0.5, 0.5))
    bench.batch()
    bench.collector.top_up(10)
    (only,) = bench.leased_prompts()
    bench.answer(only)
    bench.collector.poll(0)
    bench.collector.top_up(10)
    assert numbers(bench.collector.batch()) == [2]

    empty = make_bench(max_refill=0)
    empty.collector.top_up(10)
    for group in empty.leased_prompts():
        empty.answer(group, (0.5, 0.5))
    empty.collector.poll(0)
    empty.collector.top_up(10)
    assert empty.collector.batch() == []


def test_the_first_copy_of_a_group_wins_and_later_ones_are_counted(make_bench) -> None:
    bench = make_bench()
    bench.collector.top_up(10)
    first, second = bench.leased_prompts()
    bench.answer(first, (0.0, 1.0))
    bench.answer(first, (1.0, 0.0))
    bench.answer(second)
    batch = bench.batch()
    assert numbers(batch) == [0, 1]
    assert batch is not None
    assert batch[0].group.rewards[0].rewards[0].value == 0.0
    bench.collector.remove(batch)
    bench.ring.acknowledge([arrival.lease for arrival in batch])
    bench.answer(second)
    bench.collector.poll(0)
    assert bench.ledger.duplicates == 2
    assert bench.ring.training_groups_in_streams() == set()
    assert bench.books_balance()


def test_groups_too_old_or_of_unknown_weights_go_stale_and_are_replaced(make_bench) -> None:
    bench = make_bench(max_staleness=1)
    bench.collector.top_up(10)
    groups = bench.leased_prompts()
    bench.collector.begin_step(V1, 2)
    bench.collector.begin_step(V2, 3)
    bench.answer(groups[0], label=V0)
    bench.answer(groups[1], label=V1)
    bench.answer(groups[2], label=WeightsLabel(PolicyVersion(2), "lie"))
    bench.answer(groups[3], label=V2)
    assert numbers(bench.batch()) == [1, 3]
    assert [outcome for _, outcome in bench.dropped] == [Outcome.STALE, Outcome.STALE]
    reasons = [event["reason"] for event in read_events(bench.events_path) if event["kind"] == "group_stale"]
    assert "2 versions old" in reasons[0]
    assert "does not know" in reasons[1]


def test_staleness_is_judged_when_the_batch_is_formed(make_bench) -> None:
    bench = make_bench(max_staleness=1)
    bench.collector.top_up(10)
    groups = bench.leased_prompts()
    bench.answer(groups[0])
    bench.collector.poll(0)
    bench.collector.begin_step(V1, 2)
    bench.collector.begin_step(V2, 3)
    assert bench.collector.batch() is None
    assert bench.dropped == [(groups[0].group_id, Outcome.STALE)]


def test_a_group_that_does_not_hold_together_ends_in_quarantine_and_is_replaced(make_bench) -> None:
    bench = make_bench()
    bench.collector.top_up(10)
    first, second = bench.leased_prompts()
    bench.answer(first, (0.0, 1.0, 2.0))
    bench.answer(second)
    for _ in range(4):
        bench.collector.poll(0)
    assert bench.ledger.outcome(GroupId(first.group_id)) is Outcome.QUARANTINED
    bench.collector.top_up(10)
    assert bench.books_balance()
    assert [group.issue_number for group in bench.leased_prompts()] == [2]


def test_groups_that_a_wiped_server_lost_are_sent_again_under_the_same_id(
    make_bench, valkey_client: redis.Redis
) -> None:
    bench = make_bench()
    bench.collector.top_up(10)
    sent = bench.leased_prompts()
    bench.ring.prompts.add(GroupId(sent[0].group_id), sent[0].SerializeToString())
    assert bench.collector.resend_lost() == 0
    assert bench.collector.resend_lost() == 1
    valkey_client.flushall()
    bench.collector.poll(0)
    assert bench.collector.resend_lost() == 0
    assert bench.collector.resend_lost() == 2
    assert {group.group_id for group in bench.leased_prompts()} == {group.group_id for group in sent}


def test_a_copy_that_failed_elsewhere_does_not_put_out_a_group_that_was_accepted(make_bench) -> None:
    bench = make_bench()
    bench.collector.top_up(10)
    first, second = bench.leased_prompts()
    bench.answer(first)
    bench.collector.poll(0)
    bench.answer(first, (0.0, 1.0, 2.0))
    bench.answer(second)
    for _ in range(4):
        bench.collector.poll(0)
    assert numbers(bench.collector.batch()) == [0, 1]


def test_groups_taken_but_never_decided_on_are_taken_again_and_accepted_ones_only_once(make_bench) -> None:
    bench = make_bench()
    bench.collector.top_up(10)
    first, second = bench.leased_prompts()
    bench.answer(first)
    bench.collector.poll(0)
    bench.answer(second)
    bench.ring.take(10, 0)  # as if the reply had been lost on its way to the trainer
    assert bench.collector.batch() is None
    bench.collector.take_again()
    assert numbers(bench.collector.batch()) == [0, 1]
    assert bench.ledger.duplicates == 0


def test_an_evaluation_ends_when_each_prompt_has_come_back_or_failed_for_good(make_bench) -> None:
    bench = make_bench()
    prompts = [PreparedPrompt(f"e{i}", (1, 2), "doc", "ref", 64, 0) for i in range(2)]
    evaluation = Evaluation("before", V0, prompts)
    bench.desk.current = evaluation
    issuer = Issuer(RunId("r-test"), 1, bench.recipe, Prompts(), (STOP,))
    evaluation.send(issuer, bench.ring)
    evaluation.send(issuer, bench.ring)
    first, second = bench.leased_prompts()
    assert first.sampling.greedy_samples == 1
    evaluation.give_up_on(first.group_id)
    bench.answer(first)  # a copy sent by an earlier trainer does well after all
    bench.collector.poll(0)
    assert (evaluation.done, evaluation.complete) == (1, False)
    bench.answer(second)
    bench.answer(second)
    bench.collector.poll(0)
    assert evaluation.complete
    result = evaluation.result()
    assert [result[mode]["n"] for mode in ("greedy", "sampled")] == [2, 2]
    assert result["failed_prompts"] == 0
    assert bench.ledger.duplicates == 0


def test_an_evaluation_ignores_what_other_weights_sampled(make_bench) -> None:
    bench = make_bench()
    prompts = [PreparedPrompt("e0", (1, 2), "doc", "ref", 64, 0)]
    evaluation = Evaluation("step-000002", V1, prompts, 2)
    bench.desk.current = evaluation
    evaluation.send(Issuer(RunId("r-test"), 1, bench.recipe, Prompts(), (STOP,)), bench.ring)
    (sent,) = bench.leased_prompts()
    bench.answer(sent, label=V0)
    bench.collector.poll(0)
    assert evaluation.done == 0
    bench.answer(sent, label=V1)
    bench.collector.poll(0)
    assert evaluation.complete
    row = evaluation.result()["rows"][0]
    assert (row["outcome"], row["evaluation"], row["step"], row["mode"]) == ("evaluation", "step-000002", 2, "greedy")
    assert row["rewards"] == {"length": 0.0}


STAGES = {
    "rewards": {"length": {}, "rouge_l": {}},
    "stages": [
        {"name": "length", "steps": 1, "rewards": {"length": {}}},
        {"name": "quality", "steps": 2, "rewards": {"rouge_l": {}}},
    ],
}


def test_signal_is_judged_by_the_weights_of_the_step_that_a_group_is_batched_for(make_bench) -> None:
    bench = make_bench(STAGES, max_staleness=1, steps=3)
    bench.collector.top_up(3)
    first, second, third, fourth = bench.leased_prompts()
    for group in (first, second, third):
        bench.answer(group, (0.0, 1.0), rouge_l=(0.5, 0.5))
    batch = bench.batch()
    assert numbers(batch) == [0, 1]
    bench.collector.remove(batch)
    bench.collector.begin_step(V1, 2)
    assert bench.collector.batch() is None
    assert bench.dropped == [(third.group_id, Outcome.NO_SIGNAL)], "its rouge_l values are equal"
    bench.answer(fourth, (0.5, 0.5), rouge_l=(0.1, 0.2))
    bench.collector.top_up(2)
    for group in bench.leased_prompts():
        bench.answer(group, (0.0, 0.0), V1, rouge_l=(0.0, 1.0))
    assert numbers(bench.batch()) == [3, 4]


def test_each_issue_draws_its_own_target_and_keeps_it_when_sent_again(make_bench) -> None:
    bench = make_bench({"length": {"target_range": [10, 90]}}, groups_per_step=8)
    bench.collector.top_up(1)
    sent = bench.leased_prompts()
    targets = [group.target_tokens for group in sent]
    assert len(set(targets)) > 4
    assert all(10 <= target <= 90 for target in targets)
    assert [group.reference for group in sent] == [f"ref of {target}" for target in targets]
    for issue in list(bench.ledger.open.values()):
        bench.collector.send(issue)
    assert bench.leased_prompts() == sent


def test_what_weights_sampled_that_were_rolled_back_from_goes_stale(make_bench) -> None:
    bench = make_bench(max_staleness=3)
    bench.collector.top_up(10)
    groups = bench.leased_prompts()
    bench.collector.begin_step(V1, 2)
    bench.answer(groups[0], label=V0)
    bench.answer(groups[1], label=V1)
    bench.collector.poll(0)
    bench.collector.know_only([V0])
    bench.collector.begin_step(V2, 3)
    bench.answer(groups[2], label=V1)
    bench.answer(groups[3], label=V2)
    assert numbers(bench.batch()) == [0, 3]
    assert [outcome for _, outcome in bench.dropped] == [Outcome.STALE, Outcome.STALE]


def test_refills_go_on_being_counted_where_an_earlier_trainer_left_off(make_bench) -> None:
    bench = make_bench(max_refill=1)
    bench.collector.top_up(10)
    for group in bench.leased_prompts():
        bench.answer(group, (0.5, 0.5))
    bench.batch()
    dropped = fold(bench.wal.records()).dropped_since_batch
    assert dropped == bench.collector.dropped_this_step == 2
    bench.collector.begin_refills(dropped)
    bench.collector.top_up(10)
    (only,) = bench.leased_prompts()
    bench.answer(only)
    bench.collector.poll(0)
    bench.collector.top_up(10)
    batch = bench.collector.batch()
    assert numbers(batch) == [2]
    assert bench.collector.dropped_this_step == 2
    bench.collector.remove(batch)
    assert bench.collector.dropped_this_step == 0


def test_a_run_that_ends_leaves_no_group_open_whether_it_is_here_or_on_its_way(make_bench) -> None:
    bench = make_bench(max_staleness=1)
    bench.collector.top_up(10)
    first, *others = bench.leased_prompts()
    bench.answer(first)
    bench.collector.poll(0)
    bench.collector.close_out()
    assert not bench.ledger.open
    assert bench.ledger.counts(0)["stale"] == 4
    assert bench.books_balance()
    assert fold(bench.wal.records()).ledger.counts(0)["stale"] == 4
    bench.answer(others[0])
    bench.collector.poll(0)
    assert bench.collector.accepted() == ()
    bench.collector.close_out()
    assert bench.ledger.counts(0)["stale"] == 4
    assert bench.books_balance()


def test_samples_of_a_dropped_group_are_handed_on_before_its_event_and_again_when_it_is_taken_again(make_bench) -> None:
    bench = make_bench()
    bench.collector.top_up(10)
    first, _ = bench.leased_prompts()
    seen: list[int] = []
    bench.collector._on_dropped = lambda arrival, outcome: seen.append(
        sum(event["kind"] == "group_no_signal" for event in read_events(bench.events_path))
    )
    bench.answer(first, (0.5, 0.5))
    bench.collector.poll(0)
    assert seen == [0]
    bench.answer(first, (0.5, 0.5))
    bench.collector.poll(0)
    assert seen == [0, 1], "an earlier trainer may have died before it kept them"
    assert bench.ledger.counts(0)["no_signal"] == 1
