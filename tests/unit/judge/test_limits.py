from __future__ import annotations

import threading

from tersely.judge.limits import Budget, Circuit, RateLimit, Used


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_calls_begin_at_even_distances_and_not_before_the_endpoint_allows() -> None:
    clock = Clock()
    rate = RateLimit(60, clock)
    assert [rate.reserve() for _ in range(3)] == [0.0, 1.0, 2.0]
    rate.hold(10)
    assert [rate.reserve(), rate.reserve()] == [10.0, 11.0]
    clock.now += 60
    assert rate.reserve() == 0.0


def test_without_a_rate_nobody_waits_except_for_the_endpoint() -> None:
    rate = RateLimit(None, Clock())
    assert rate.reserve() == rate.reserve() == 0.0
    rate.hold(2)
    assert rate.reserve() == rate.reserve() == 2.0


def test_the_circuit_opens_after_failures_in_a_row_only() -> None:
    circuit = Circuit(3, 30, Clock())
    for outcome in ("failed", "failed", "answered", "failed", "failed"):
        assert circuit.allows()
        circuit.book(outcome)
    assert (circuit.allows(), circuit.opened) == (True, 0)
    circuit.book("failed")
    assert (circuit.allows(), circuit.opened) == (False, 1)


def test_after_the_cooldown_one_call_at_a_time_finds_out() -> None:
    clock = Clock()
    circuit = Circuit(1, 30, clock)
    circuit.allows()
    circuit.book("failed")
    clock.now += 31
    assert [circuit.allows(), circuit.allows()] == [True, False]
    circuit.book("failed")
    assert not circuit.allows()
    clock.now += 31
    assert circuit.allows()
    circuit.book("not made")
    assert circuit.allows()
    circuit.book("answered")
    assert circuit.allows()
    assert circuit.allows()


def test_a_budget_is_never_passed_and_gives_back_what_was_not_used() -> None:
    budget = Budget(tokens=100)
    most = Used(30, 10)
    assert budget.take(most)
    assert budget.take(Used(30, 10))
    budget.settle(most, Used(20, 5))
    assert budget.take(Used(30, 5))
    for held in (most, Used(30, 5)):
        budget.settle(held, held)
    assert budget.used == Used(80, 20)
    assert not budget.take(Used(1, 0))
    assert budget.refused == 1


def test_who_is_only_held_up_by_calls_in_flight_waits_for_them() -> None:
    budget = Budget(tokens=100)
    held = Used(80, 10)
    assert budget.take(held)
    got: list[bool] = []
    waiting = threading.Thread(target=lambda: got.append(budget.take(Used(50, 0))))
    waiting.start()
    waiting.join(0.05)
    assert got == []
    budget.settle(held, Used(10, 0))
    waiting.join(10)
    assert got == [True]


def test_money_counts_reading_and_writing_by_their_prices() -> None:
    budget = Budget(cost=1.0, price_read=1e6, price_written=0.0)
    assert not budget.take(Used(2, 0))
    assert budget.take(Used(1, 1000))
    budget.settle(Used(1, 1000), Used(1, 1000))
    assert budget.cost == 1.0
    assert not budget.take(Used(1, 0))
