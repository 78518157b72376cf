"""Second copies, groups that do not hold together, and groups that got lost."""

from __future__ import annotations

from pathlib import Path

import pytest
import redis

from tersely.errors import RedisUnreachable
from tersely.testing.modules import load_module
from tersely.trainer.ledger import Outcome
from tersely.types import GroupId
from tersely.v1 import group_pb2

_bench = load_module(Path(__file__).with_name("collector_bench.py"))
make_bench = _bench.make_bench
numbers = _bench.numbers


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


def test_groups_that_the_server_took_although_sending_them_broke_are_not_sent_again(
    make_bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make_bench()
    send_many = bench.ring.send_many

    def reply_lost(groups: list[group_pb2.PromptGroup]) -> None:
        send_many(groups)
        raise RedisUnreachable("the connection broke")

    with monkeypatch.context() as broken:
        broken.setattr(bench.ring, "send_many", reply_lost)
        with pytest.raises(RedisUnreachable):
            bench.collector.top_up(10)
    first, second = bench.leased_prompts()
    bench.ring.prompts.add(GroupId(second.group_id), second.SerializeToString())  # one still waits,
    bench.answer(first)  # the other was answered meanwhile
    bench.collector.poll(0)
    bench.collector.top_up(10)
    assert [group.group_id for group in bench.leased_prompts()] == [second.group_id]


def test_groups_never_sent_are_sent_once_by_whoever_finds_them_missing_first(
    make_bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make_bench()

    def refused(groups: list[group_pb2.PromptGroup]) -> None:
        raise RedisUnreachable("nobody listens")

    with monkeypatch.context() as broken:
        broken.setattr(bench.ring, "send_many", refused)
        with pytest.raises(RedisUnreachable):
            bench.collector.top_up(10)
    assert [bench.collector.resend_lost() for _ in range(2)] == [0, 2]
    sent = bench.leased_prompts()
    assert len(sent) == 2
    bench.collector.top_up(10)  # though a worker has them, between two streams
    assert bench.leased_prompts() == []
