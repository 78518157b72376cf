"""Groups that can't be trained on are replaced, so far as the recipe says, and are in the books."""

from __future__ import annotations

from pathlib import Path

from tersely.telemetry.events import read_events
from tersely.testing.modules import load_module
from tersely.trainer.history import fold
from tersely.trainer.ledger import Outcome

_bench = load_module(Path(__file__).with_name("collector_bench.py"))
make_bench = _bench.make_bench
numbers = _bench.numbers


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
