"""Groups of weights too old or unknown."""

from __future__ import annotations

from pathlib import Path

from tersely.telemetry.events import read_events
from tersely.testing.modules import load_module
from tersely.trainer.ledger import Outcome
from tersely.types import PolicyVersion, WeightsLabel

_bench = load_module(Path(__file__).with_name("collector_bench.py"))
make_bench = _bench.make_bench
numbers = _bench.numbers
V0 = _bench.V0
V1 = _bench.V1
V2 = _bench.V2


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
