"""What the ring's consumer does when the queue or a reward misbehaves, with a scripted stream."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, cast

import pytest

from tersely.errors import LeaseLost, RedisAuth, RedisOutOfMemory, RedisUnreachable, TerselyError
from tersely.queue import Lease, LeaseKeeper, WorkStream
from tersely.scorer.registry import build_reward
from tersely.scorer.ring import RingScorer
from tersely.types import GroupId
from tersely.v1 import common_pb2, group_pb2


def payload(group_size: int = 1) -> bytes:
    group = group_pb2.CompletionGroup(prompt=group_pb2.PromptGroup(group_size=group_size, target_tokens=2))
    group.completions.add(token_ids=[5, 5], finish_reason=common_pb2.FINISH_REASON_LENGTH)
    return group.SerializeToString()


class ScriptedStream:
    """Gives one lease, then asks the scorer to stop; `forward` raises what it is told to, one after the other."""

    lease_seconds = 60.0

    def __init__(self, stopping: threading.Event, faults: list[TerselyError], data: bytes) -> None:
        self.stopping, self.faults, self.data = stopping, faults, data
        self.forwarded: list[group_pb2.ScoredGroup] = []
        self.failed: list[str] = []
        self.given_back: list[str] = []
        self.asked_for: list[int] = []
        self.scripts: list[list[Lease]] = []
        self.given = False
        self.idle = 0

    def create(self) -> None: ...

    def lease(self, count: int, block_seconds: float) -> list[Lease]:
        self.asked_for.append(count)
        if self.scripts:
            return self.scripts.pop(0)
        if self.given:
            self.idle += 1
            if self.idle > 1:
                self.stopping.set()
            return []
        self.given = True
        return [Lease(b"1-0", GroupId("g"), self.data, 0, 0)]

    def renew(self, leases: list[Lease]) -> list[Lease]:
        return leases

    def forward_many(self, finished: list[tuple[Lease, bytes]], to_key: str) -> list[Lease]:
        if self.faults:
            fault = self.faults.pop(0)
            if isinstance(fault, LeaseLost):
                return [lease for lease, _ in finished]
            raise fault
        self.forwarded += [group_pb2.ScoredGroup.FromString(data) for _, data in finished]
        return []

    def give_back(self, lease: Lease) -> None:
        self.given_back.append(lease.group_id)

    def fail(self, lease: Lease, error_kind: str, message: str) -> bool:
        self.failed.append(error_kind)
        return False


def run(
    *faults: TerselyError,
    data: bytes | None = None,
    patience_seconds: float = 60.0,
    same_run: Callable[[], bool] = lambda: True,
    scripts: list[list[Lease]] | None = None,
    on_report: Callable[[threading.Event, str], Any] = lambda stopping, detail: None,
) -> tuple[ScriptedStream, RingScorer]:
    stopping = threading.Event()
    scripted = ScriptedStream(stopping, list(faults), payload() if data is None else data)
    scripted.scripts = scripts or []
    stream = cast(WorkStream, scripted)
    rewards = [build_reward("length")]
    scorer = RingScorer(
        stream,
        LeaseKeeper(stream),
        "scored",
        "scorer-1",
        rewards=rewards,
        evaluation=rewards,
        report=lambda state, detail: on_report(stopping, detail),
        same_run=same_run,
        patience_seconds=patience_seconds,
    )
    scorer.run(stopping)
    return scripted, scorer


@pytest.mark.parametrize("fault", [RedisUnreachable, RedisOutOfMemory])
def test_a_queue_that_is_away_or_full_for_a_moment_costs_nothing(fault: type[TerselyError]) -> None:
    stream, scorer = run(fault("gone"), fault("gone"))
    assert len(stream.forwarded) == 1
    assert stream.failed == []
    assert (scorer.groups_finished, scorer.last_error) == (1, f"{fault.kind}: gone")


def test_a_queue_that_stays_away_ends_the_process_with_its_error() -> None:
    with pytest.raises(RedisUnreachable):
        run(*[RedisUnreachable("gone")] * 9, patience_seconds=0.05)


def test_a_full_queue_is_waited_for_beyond_the_patience() -> None:
    stream, _ = run(*[RedisOutOfMemory("full")] * 2, patience_seconds=0.0)
    assert len(stream.forwarded) == 1


def test_a_drain_while_the_queue_is_away_ends_at_once_and_counts_nothing() -> None:
    stream, scorer = run(
        *[RedisUnreachable("gone")] * 99, on_report=lambda stopping, detail: detail == "gone" and stopping.set()
    )
    assert stream.forwarded == []
    assert scorer.groups_finished == 0


def test_a_refused_login_is_not_waited_for() -> None:
    with pytest.raises(RedisAuth):
        run(RedisAuth("no"))


def test_the_result_of_a_lost_lease_is_dropped_without_a_strike() -> None:
    stream, scorer = run(LeaseLost("lost"))
    assert (stream.forwarded, stream.failed, scorer.groups_finished) == ([], [], 0)


def test_a_run_that_is_over_ends_the_work_after_what_was_there() -> None:
    stream, _ = run(same_run=lambda: False)
    assert len(stream.forwarded) == 1
    assert not stream.stopping.is_set()


def test_a_malformed_group_is_a_strike() -> None:
    stream, scorer = run(data=payload(group_size=3))
    assert stream.failed == ["malformed_group"]
    assert "1 completions for a group size of 3" in scorer.last_error


def test_a_fault_of_the_scorer_itself_is_a_strike_and_not_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("bug")

    monkeypatch.setattr("tersely.scorer.ring.score_batch", broken)
    stream, scorer = run()
    assert stream.failed == ["scorer_error"]
    assert scorer.last_error == "scorer_error: ZeroDivisionError: bug"


def leases(*expired: int) -> list[Lease]:
    return [Lease(f"{n}-0".encode(), GroupId(f"g{n}"), payload(), 0, times) for n, times in enumerate(expired)]


def test_groups_that_are_scored_in_no_time_are_taken_and_handed_on_together() -> None:
    stream, scorer = run(scripts=[leases(0)] * 20 + [leases(0, 0, 0)])
    assert stream.asked_for[0] == 1
    assert stream.asked_for[20] > 1
    assert scorer.groups_finished == len(stream.forwarded) == 24


def test_a_group_whose_lease_expired_is_scored_with_nothing_beside_it() -> None:
    stream, scorer = run(scripts=[leases(0, 1, 0)])
    assert stream.given_back == ["g1", "g2"]
    assert scorer.groups_finished == 2


def test_a_bad_group_takes_no_other_down_with_it() -> None:
    good, bad = leases(0), [Lease(b"9-0", GroupId("bad"), b"\xff\xff", 0, 0)]
    stream, scorer = run(scripts=[bad + good])
    assert stream.failed == ["malformed_group"]
    assert scorer.groups_finished == len(stream.forwarded) == 2
