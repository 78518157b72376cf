"""The collector on a real server: what it sends, and batches."""

from __future__ import annotations

from pathlib import Path

from tersely.testing.modules import load_module
from tersely.trainer.ledger import Outcome

_bench = load_module(Path(__file__).with_name("collector_bench.py"))
make_bench = _bench.make_bench
numbers = _bench.numbers
V1 = _bench.V1


STAGES = {
    "rewards": {"length": {}, "rouge_l": {}},
    "stages": [
        {"name": "length", "steps": 1, "rewards": {"length": {}}},
        {"name": "quality", "steps": 2, "rewards": {"rouge_l": {}}},
    ],
}


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
