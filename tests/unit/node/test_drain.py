import os
import signal
import subprocess
import sys
import time

import pytest

from tersely.node.drain import DrainSignal
from tersely.node.meter import RateMeter

PROGRAM = """
import sys, time
from tersely.node.drain import DrainSignal
with DrainSignal() as drain:
    print("ready", flush=True)
    drain.wait()
    print("draining", flush=True)
    if sys.argv[1] == "hang":
        time.sleep(60)
sys.exit(7)
"""


def start(mode: str) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, mode], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_lets_the_program_end_by_itself(number: signal.Signals) -> None:
    with start("end") as process:
        process.send_signal(number)
        assert process.communicate(timeout=30)[0] == "draining\n"
    assert process.returncode == 7


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_second_signal_ends_it_at_once(number: signal.Signals, code: int) -> None:
    with start("hang") as process:
        process.send_signal(number)
        assert process.stdout is not None
        assert process.stdout.readline() == "draining\n"
        started = time.monotonic()
        process.send_signal(number)
        assert process.wait(timeout=30) == code
        assert time.monotonic() - started < 20


def test_handlers_from_before_come_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with DrainSignal() as drain:
        assert signal.getsignal(signal.SIGTERM) != before[0]
        assert not drain.is_set()
        os.kill(os.getpid(), signal.SIGTERM)
        assert drain.wait(10)
        assert drain.event.is_set()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_drain_can_be_asked_for_from_inside() -> None:
    drain = DrainSignal()
    assert drain.wait(0) is False
    drain.set()
    assert drain.is_set()


def test_a_rate_is_that_of_the_window() -> None:
    now = [0.0]
    meter = RateMeter(window_seconds=10, clock=lambda: now[0])
    assert meter.per_second() == 0
    now[0] = 4.0
    meter.add(20)
    assert meter.per_second() == pytest.approx(5.0)
    now[0] = 12.0
    meter.add(30)
    assert meter.per_second() == pytest.approx(5.0)
    now[0] = 15.0
    assert meter.per_second() == pytest.approx(3.0)
    now[0] = 30.0
    assert meter.per_second() == 0


def test_a_rate_right_after_the_start_is_not_blown_up() -> None:
    now = [0.0]
    meter = RateMeter(clock=lambda: now[0])
    now[0] = 0.001
    meter.add(10)
    assert meter.per_second() == pytest.approx(10.0)
