"""A calm hour, replayed: the watchdog says nothing, whatever else calm runs do."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from tersely.testing.modules import load_module

_world = load_module(Path(__file__).with_name("stalled_world.py"))

HOUR = 3600


def silent(world: Any) -> bool:
    """Whether nothing was said, and the whole time was watched."""
    return world.watch.said is None and world.written("stall") == []


def test_it_says_nothing_in_a_calm_hour_with_checkpoints_evaluations_and_long_documents(tmp_path: Path) -> None:
    world, draw = _world.World(tmp_path), random.Random(0)
    began = world.time
    while world.time - began < HOUR:
        # Long documents come as they come: a step takes between 4 s and 20 s.
        collect = 4 + 16 * draw.random() ** 2
        checkpoint = 6 if world.step % 10 == 9 else 0
        world.facts["evaluation"] = {"name": "step", "done": 1, "of": 9} if world.step % 10 in (0, 1) else None
        if world.facts["evaluation"]:
            collect *= 1.5
        world.calm_step(
            collect=collect, learn=2 + 4 * draw.random(), checkpoint=checkpoint, evaluation=25 * (world.step % 50 == 49)
        )
    assert world.step > 150
    assert silent(world)


def test_it_says_nothing_of_slow_first_steps_to_which_workers_have_yet_to_come(tmp_path: Path) -> None:
    world = _world.World(tmp_path)
    nodes, world.nodes = world.nodes, {}
    with world.collecting():
        world.ticks(10)
        world.nodes = nodes
        for name in ("rollout-1", "rollout-2"):
            world.nodes[name] |= {"state": "starting", "detail": "waiting for the trainer's newest version"}
        world.ticks(60)
        world.come_back()
    for _ in range(5):
        world.calm_step()
    assert silent(world)


def test_a_laptop_that_slept_for_an_hour_is_no_stall(tmp_path: Path) -> None:
    for monotonic in (False, True):  # clocks of most systems stand still in sleep; those of a stopped process do not
        folder = tmp_path / str(monotonic)
        folder.mkdir()
        world = _world.World(folder)
        for _ in range(10):
            world.calm_step()
        with world.collecting():
            world.ticks(2)
            world.nodes.clear()  # all heartbeats have expired when it wakes
            world.sleep(HOUR, monotonic=monotonic)
            world.ticks(8)
            for name, role in (("rollout-1", "rollout"), ("rollout-2", "rollout"), ("scorer-1", "scorer")):
                world.join(name, role)  # they come back, and generate what they had leased
            world.ticks(8)
            for _ in range(_world.GROUPS):
                world.come_back()
                world.ticks(2)
        world.step += 1
        for _ in range(10):
            world.calm_step()
        assert silent(world)
        with world.collecting():  # and what stalls after that is said as soon as ever: the hour is not in the history
            assert world.until_named(most=30)[0] == "worker_stuck"


def test_a_server_that_starts_again_within_seconds_is_no_stall(tmp_path: Path) -> None:
    from tersely.errors import RedisUnreachable

    world = _world.World(tmp_path)
    for _ in range(10):
        world.calm_step()
    with world.collecting():
        for seconds in range(12):
            world.probes.error = RedisUnreachable("It does not answer.", "") if 3 <= seconds < 9 else None
            world.facts["queue_error"] = "Redis at h:1 does not answer: refused." if 3 <= seconds < 9 else None
            world.tick()
        world.come_back()
    world.calm_step()
    assert silent(world)


def test_batches_that_get_longer_step_by_step_become_the_rule(tmp_path: Path) -> None:
    world = _world.World(tmp_path)
    for step in range(60):
        world.calm_step(learn=3 + step)
    assert silent(world)


def test_a_sudden_slowness_that_lasts_is_said_at_first_and_then_is_history(tmp_path: Path) -> None:
    world = _world.World(tmp_path)
    for _ in range(10):
        world.calm_step(learn=5)
    for _ in range(20):
        world.calm_step(learn=40)
    said = world.written("stall")
    assert {event["name"] for event in said} == {"learner_slow"}
    assert 1 <= len(said) <= 3
    assert len(world.written("stall_over")) == len(said)
