"""Held-out prompts that come back among the groups."""

from __future__ import annotations

from pathlib import Path

from tersely.data.prompts import PreparedPrompt
from tersely.testing.modules import load_module
from tersely.trainer.evaluation import Evaluation
from tersely.trainer.issuing import Issuer
from tersely.types import RunId

_bench = load_module(Path(__file__).with_name("collector_bench.py"))
make_bench = _bench.make_bench
Prompts = _bench.Prompts
STOP = _bench.STOP
V0 = _bench.V0
V1 = _bench.V1


def test_an_evaluation_ends_when_each_prompt_has_come_back_or_failed_for_good(make_bench) -> None:
    bench = make_bench()
    prompts = [PreparedPrompt(f"e{i}", (1, 2), "doc", "ref", 64, 0) for i in range(2)]
    evaluation = Evaluation("before", V0, prompts)
    bench.desk.under_way.append(evaluation)
    issuer = Issuer(RunId("r-test"), 1, bench.recipe, Prompts(), (STOP,))
    evaluation.send(issuer, bench.ring)
    evaluation.send(issuer, bench.ring)
    first, second = bench.leased_held_out()
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
    bench.desk.under_way.append(evaluation)
    evaluation.send(Issuer(RunId("r-test"), 1, bench.recipe, Prompts(), (STOP,)), bench.ring)
    (sent,) = bench.leased_held_out()
    bench.answer(sent, label=V0)
    bench.collector.poll(0)
    assert evaluation.done == 0
    bench.answer(sent, label=V1)
    bench.collector.poll(0)
    assert evaluation.complete
    row = evaluation.result()["rows"][0]
    assert (row["outcome"], row["evaluation"], row["step"], row["mode"]) == ("evaluation", "step-000002", 2, "greedy")
    assert row["rewards"] == {"length": 0.0}
