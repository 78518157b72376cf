"""What becomes of a finding: said once, taken back when things go on, acted on where that was asked for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tersely.config.watchdog import WatchdogSection
from tersely.errors import RunStalled
from tersely.node.drain import DrainSignal
from tersely.testing.modules import load_module
from tersely.trainer.watchdog.absent import why_unscored
from tersely.trainer.watchdog.clock import AwakeClock
from tersely.trainer.watchdog.guard import Guard
from tersely.trainer.watchdog.pace import COLLECT, LEARN, Pace
from tersely.v1 import group_pb2

_world = load_module(Path(__file__).with_name("stalled_world.py"))


def stalled_world(folder: Path, **settings: Any) -> Any:
    world = _world.World(folder, WatchdogSection(**settings))
    for _ in range(6):
        world.calm_step()
    return world


def test_it_is_said_once_and_taken_back_when_a_group_comes(tmp_path: Path) -> None:
    world = stalled_world(tmp_path)
    with world.collecting():
        name, _ = world.until_named()
        world.ticks(20)
        assert world.shown["stalled_seconds"] == 20
        world.come_back()
        world.tick()
        assert world.shown is None
    assert [event["name"] for event in world.written("stall")] == [name]
    assert [event["name"] for event in world.written("stall_over")] == [name]
    assert world.written("stall_over")[0]["seconds"] >= 20


def test_another_part_is_named_when_the_trouble_moves_on(tmp_path: Path) -> None:
    world = stalled_world(tmp_path)
    with world.collecting():
        assert world.until_named()[0] == "worker_stuck"
        for name in ("rollout-1", "rollout-2"):
            world.nodes[name]["alive"] = False
        world.ticks(15)
    assert [event["name"] for event in world.written("stall")] == ["worker_stuck", "no_worker"]


def test_a_stall_does_not_make_the_next_one_seem_normal(tmp_path: Path) -> None:
    world = stalled_world(tmp_path)
    for _ in range(8):  # more than any outlier that is left out of the history
        with world.collecting():
            assert world.until_named()[0] == "worker_stuck"
            world.ticks(100)
            world.come_back()
            world.tick()
    with world.collecting():
        assert world.until_named()[1] <= 30


def test_it_gives_up_after_the_time_that_was_set_and_not_before(tmp_path: Path) -> None:
    world = stalled_world(tmp_path, give_up_seconds=40)
    with world.collecting():
        world.until_named()
        world.ticks(39)
        world.watch.check()
        world.ticks(2)
        with pytest.raises(RunStalled, match="worker_stuck") as raised:
            world.watch.check()
    assert raised.value.exit_code == 114
    assert "--resume" in raised.value.way_out
    assert [event["give_up_seconds"] for event in world.written("run_gave_up")] == [40]


def test_it_never_gives_up_by_itself(tmp_path: Path) -> None:
    world = stalled_world(tmp_path)
    with world.collecting():
        world.ticks(7200)
        world.watch.check()


class TestGuard:
    """The thread, with a watch that has given up."""

    @staticmethod
    def start(world: Any, leave: Callable[[int], Any]) -> tuple[Guard, DrainSignal]:
        drain = DrainSignal()
        world.watch.gave_up = world.watch.said
        clock = AwakeClock()
        clock.wait = lambda seconds, wait: wait(0.0)  # type: ignore[method-assign]
        guard = Guard(world.watch, drain, clock, 0.01 if leave.__name__ == "left" else 60.0, leave)
        guard.start()
        return guard, drain

    @pytest.fixture
    def world(self, tmp_path: Path) -> Any:
        world = stalled_world(tmp_path)
        with world.collecting():
            world.until_named()
            yield world

    def test_the_loop_is_asked_to_end_first(self, world: Any) -> None:
        def never(code: int) -> None:
            raise AssertionError(code)

        guard, drain = self.start(world, never)
        assert drain.wait(30)
        guard.stop()

    def test_a_trainer_that_hangs_is_ended_with_the_code(
        self, world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TERSELY_ERROR_FILE", str(tmp_path / "error"))
        codes: list[int] = []
        gone = threading.Event()

        def left(code: int) -> None:
            codes.append(code)
            gone.set()

        guard, _ = self.start(world, left)
        assert gone.wait(30)
        guard.stop()
        assert codes == [114]
        assert '"run_stalled"' in (tmp_path / "error").read_text()


def test_a_look_that_fails_does_not_end_the_watch(tmp_path: Path) -> None:
    world = stalled_world(tmp_path)
    looks, seen = [], threading.Event()

    def broken() -> None:
        looks.append(1)
        if len(looks) == 3:
            seen.set()
        raise ValueError("no such key")

    world.watch.tick = broken
    clock = AwakeClock()
    clock.wait = lambda seconds, wait: wait(0.001)  # type: ignore[method-assign]
    guard = Guard(world.watch, DrainSignal(), clock, 60.0)
    guard.start()
    assert seen.wait(30)
    guard.stop()


def test_history_is_taken_over_from_an_earlier_trainer() -> None:
    pace = Pace(lambda: 0.0)
    seconds = {"wait": 4.0, "log": 0.1, "learn": 2.0, "publish": 0.5, "forward": 1.0}
    pace.remember([{"kind": "step_finished", "seconds": seconds}] * 3)
    pace.remember([{"kind": "step_finished", "seconds": {"learn": 900.0}, "replayed": True}, {"kind": "alarm"}])
    assert pace.past()[LEARN].durations == (2.0, 2.0, 2.0)
    assert pace.past()[COLLECT].durations == (4.0, 4.0, 4.0)


def test_a_batch_that_comes_to_nothing_goes_on_as_the_same_step() -> None:
    now = [0.0]
    pace = Pace(lambda: now[0])
    for _ in range(3):
        with pace.phase(COLLECT, 7):
            now[0] += 10
            assert pace.now is not None
            assert pace.now.began == 0.0
    with pace.phase(COLLECT, 8):
        assert pace.now is not None
        assert pace.now.began == 30.0


def test_what_ends_in_an_error_is_no_history() -> None:
    pace = Pace(lambda: 0.0)
    with pytest.raises(OSError, match="full"), pace.phase(LEARN, 1):
        raise OSError("full")
    assert pace.past() == {}
    assert pace.now is None


def scored(*values: float | None) -> group_pb2.ScoredGroup:
    rows = []
    for value in values:
        reward = group_pb2.RewardValue(name="judge", value=value, absent_reason="" if value is not None else "down")
        other = group_pb2.RewardValue(name="shown", absent_reason="never")
        rows.append(group_pb2.CompletionRewards(rewards=[reward, other]))
    return group_pb2.ScoredGroup(rewards=rows)


def test_a_reward_that_counts_and_is_absent_explains_a_group_without_signal() -> None:
    weights = {"judge": 1.0, "shown": 0.0}
    assert why_unscored(scored(None, None, 1.0, 1.0), weights) == "judge: down"
    assert why_unscored(scored(None, 1.0, 1.0, 1.0), weights) == ""
    assert why_unscored(scored(1.0, 1.0), weights) == ""


def test_a_step_of_which_every_group_falls_out_is_named_though_such_steps_took_longer(tmp_path: Path) -> None:
    world = _world.World(tmp_path)
    for _ in range(6):
        world.calm_step(collect=40)
    with world.collecting():
        for seconds in range(30):
            if seconds % 2:
                world.come_back()
                world.groups["no_signal"] += 1
            world.tick()
        assert world.watch.said is not None
        assert world.watch.said.name == "no_signal"


def test_a_step_that_is_full_of_groups_without_signal_and_finds_others_is_left_alone(tmp_path: Path) -> None:
    world = _world.World(tmp_path)
    for _ in range(6):
        world.calm_step(collect=40)
    with world.collecting():
        for seconds in range(60):
            if seconds % 2:
                world.come_back()
                world.groups["no_signal"] += seconds % 10 != 1
            world.tick()
    assert world.written("stall") == []
