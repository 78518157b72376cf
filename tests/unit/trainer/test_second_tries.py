"""Groups in the quarantine that a person decided on: tried again once, whatever dies meanwhile, or dropped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tersely.errors import QuarantineRefused, QueueError
from tersely.queue.decisions import ASKED, DONE, DROP, REFUSED, REPLAY, Decision, Decisions
from tersely.queue.set_aside import SetAside
from tersely.telemetry.events import read_events
from tersely.testing.modules import load_module
from tersely.trainer.history import fold
from tersely.trainer.ledger import Outcome
from tersely.types import GroupId
from tersely.v1 import group_pb2

_bench = load_module(Path(__file__).with_name("collector_bench.py"))
make_bench = _bench.make_bench


def quarantine(bench, prompt: group_pb2.PromptGroup) -> GroupId:
    """Fails it as often as it takes, as a worker does."""
    bench.ring.prompts.add(GroupId(prompt.group_id), prompt.SerializeToString())
    for _ in range(3):
        (lease,) = bench.ring.prompts.lease(1, 0)
        bench.ring.prompts.fail(lease, "engine_failed", "boom")
    bench.collector.poll(0)
    assert bench.ledger.outcome(prompt.group_id) is Outcome.QUARANTINED
    return GroupId(prompt.group_id)


def look_again(bench) -> None:
    bench.collector._looked_at_quarantine = 0.0
    bench.collector.poll(0)


@pytest.fixture
def bench(make_bench):
    found = make_bench()
    found.collector.top_up(10)
    found.first, found.second = found.leased_prompts()
    return found


@pytest.fixture
def decisions(bench, valkey_client) -> Decisions:
    return Decisions(valkey_client, bench.ring.keys)


def kinds(bench) -> list[str]:
    return [event["kind"] for event in read_events(bench.events_path)]


def test_a_second_try_is_a_new_issue_of_the_same_prompt_and_takes_one_credit(bench, decisions) -> None:
    failed = quarantine(bench, bench.first)
    assert decisions.ask(Decision(failed, REPLAY)) is None
    look_again(bench)
    bench.collector.top_up(10)
    (again,) = bench.leased_prompts()
    assert again.prompt_id == bench.first.prompt_id
    assert (again.issue_number, again.group_id != failed) == (2, True)
    assert again.document == bench.first.document
    look_again(bench)
    done = decisions.read()[failed]
    assert (done.state, done.issued_as) == (DONE, again.group_id)
    for prompt in (bench.second, again):
        bench.answer(prompt)
    assert bench.books_balance()
    (event,) = [event for event in read_events(bench.events_path) if event.get("replay_of")]
    assert (event["replay_of"], event["group_id"]) == (failed, again.group_id)


def test_it_is_tried_again_once_though_the_answer_got_lost_and_the_trainer_was_killed(bench, decisions) -> None:
    failed = quarantine(bench, bench.first)
    decisions.ask(Decision(failed, REPLAY))
    look_again(bench)
    bench.collector.top_up(10)
    bench.leased_prompts()
    assert decisions.read()[failed].state == ASKED, "the trainer dies before it answers"
    history = fold(bench.wal.records())
    assert list(history.ledger.replays) == [failed]
    again = _bench.Collector(
        bench.recipe,
        bench.collector._issuer,
        history.ledger,
        bench.ring,
        bench.wal,
        bench.events,
        desk=bench.desk,
        on_dropped=lambda arrival, outcome: None,
    )
    again.begin_step(_bench.V0, 1)
    again.poll(0)
    again.top_up(10)
    assert bench.leased_prompts() == []
    assert decisions.read()[failed].state == DONE
    assert sum(record.group_issued.replay_of == failed for record in bench.wal.records()) == 1


def test_a_group_is_decided_on_once(bench, decisions) -> None:
    failed = quarantine(bench, bench.first)
    decisions.ask(Decision(failed, REPLAY))
    earlier = decisions.ask(Decision(failed, DROP, reason="changed my mind"))
    assert earlier is not None
    assert earlier.action == REPLAY


def test_a_dropped_one_leaves_the_stream_with_its_reason_in_the_events(bench, decisions, valkey_client) -> None:
    failed = quarantine(bench, bench.first)
    decisions.ask(Decision(failed, DROP, reason="no text"))
    look_again(bench)
    assert valkey_client.xlen(bench.ring.keys.quarantine) == 0
    assert decisions.read()[failed].state == DONE
    (event,) = [event for event in read_events(bench.events_path) if event["kind"] == "quarantine_dropped"]
    assert (event["group_id"], event["reason"]) == (failed, "no text")
    assert bench.ledger.counts(0)["quarantined"] == 1


def test_what_is_no_quarantined_group_of_this_run_is_refused_and_never_issued(bench, decisions) -> None:
    decisions.ask(Decision(GroupId("eval-before-1"), REPLAY))
    decisions.ask(Decision(GroupId("someone-elses"), REPLAY))
    look_again(bench)
    bench.collector.top_up(10)
    assert bench.leased_prompts() == []
    assert {decision.state for decision in decisions.read().values()} == {REFUSED}
    assert kinds(bench).count("quarantine_refused") == 2


def test_a_decision_that_cannot_be_read_stops_nothing(bench, decisions, valkey_client) -> None:
    failed = quarantine(bench, bench.first)
    for value in (b"\xff", b"[]", b'{"action": "os.system"}', b'{"action": "replay", "time": {}}'):
        valkey_client.hset(bench.ring.keys.quarantine_decisions, failed, value)
        look_again(bench)
    assert bench.ledger.replays == {}


def test_one_still_open_is_left_until_its_fate_is_known(bench, decisions) -> None:
    decisions.ask(Decision(GroupId(bench.second.group_id), REPLAY))
    look_again(bench)
    assert decisions.read()[GroupId(bench.second.group_id)].state == ASKED


def test_people_see_entries_with_their_prompt_and_decision(bench, decisions, valkey_client) -> None:
    failed = quarantine(bench, bench.first)
    aside = SetAside(bench.ring.keys.run_id, valkey_client, None)
    found = aside.find(failed[:6])
    assert (found.group_id, found.stage, found.error_kind, found.error) == (failed, "prompts", "engine_failed", "boom")
    assert found.entry()["document"] == "doc"
    assert found.decided == "undecided"
    assert aside.ask(failed, REPLAY)["state"] == ASKED
    with pytest.raises(QuarantineRefused, match="decided on before"):
        aside.ask(failed, DROP, "again")
    assert aside.find(failed).decided == "replay asked"


def test_an_id_that_is_not_there_or_means_several_is_refused(bench, valkey_client) -> None:
    for prompt in (bench.first, bench.second):
        quarantine(bench, prompt)
    aside = SetAside(bench.ring.keys.run_id, valkey_client, None)
    for start in ("zz", ""):
        with pytest.raises(QuarantineRefused):
            aside.find(start)


def test_with_the_server_gone_the_events_still_tell_and_nothing_can_be_asked_for(bench, tmp_path) -> None:
    failed = quarantine(bench, bench.first)
    (tmp_path / "run.json").write_text(json.dumps({"run_id": "r-test", "redis_url": "redis://127.0.0.1:1"}))
    with SetAside.of_run(tmp_path) as aside:
        (found,) = aside.groups()
        assert (found.group_id, found.error, aside.source) == (failed, "boom", "event log")
        with pytest.raises(QueueError):
            aside.ask(failed, REPLAY)
