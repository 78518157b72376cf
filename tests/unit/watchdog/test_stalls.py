"""Every kind of stall is named for what it is, within half a minute of an otherwise calm run."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tersely.errors import QueueError, RedisOutOfMemory, RedisUnreachable
from tersely.testing.modules import load_module
from tersely.trainer.watchdog.finding import NAMES
from tersely.trainer.watchdog.pace import CHECKPOINT, EVALUATION, LEARN, PUBLISH

_world = load_module(Path(__file__).with_name("stalled_world.py"))
World, GROUPS = _world.World, _world.GROUPS

WITHIN_SECONDS = 30
Each = Callable[[], None]
Stall = Callable[[Any], Iterator[Each | None]]
STALLS: dict[str, tuple[str, str, Stall]] = {}


def nothing() -> None: ...


def stall(name: str, part: str = "") -> Callable[[Stall], Stall]:
    """Registers a stall; it yields what happens at each second while it lasts."""

    def keep(function: Stall) -> Stall:
        STALLS[function.__name__] = name, part, function
        return function

    return keep


@stall("redis_unreachable", "redis")
def redis_is_stopped(world: Any) -> Iterator[Each | None]:
    with world.collecting():
        world.probes.error = RedisUnreachable("Redis at h:1 does not answer: timed out.", "")
        world.facts["queue_error"] = world.probes.error.message
        for node in world.nodes.values():
            node["alive"] = False  # nobody's heartbeat can be read
        yield None


@stall("redis_refuses_writes", "redis")
def redis_is_out_of_memory(world: Any) -> Iterator[Each | None]:
    with world.collecting():
        world.probes.error = RedisOutOfMemory("Redis at h:1 is at its maxmemory and takes no more work.", "")
        for node in world.nodes.values():
            node["alive"] = False  # heartbeats are writes
        yield None


@stall("redis_refuses_writes", "redis")
def redis_cannot_save_to_its_disk(world: Any) -> Iterator[Each | None]:
    with world.collecting():
        world.probes.error = QueueError("Redis at h:1 refused a command: MISCONF Errors writing to the AOF file.", "")
        yield None


@stall("no_worker", "rollout-")
def all_workers_are_killed(world: Any) -> Iterator[Each | None]:
    with world.collecting():
        for name in ("rollout-1", "rollout-2"):
            world.nodes[name]["alive"] = False
        yield None


@stall("no_worker", "rollout")
def no_worker_ever_came(world: Any) -> Iterator[Each | None]:
    del world.nodes["rollout-1"], world.nodes["rollout-2"]
    with world.collecting():
        world.queues(prompts=(GROUPS, 0))
        world.probes.held = {}
        yield None


@stall("no_scorer", "scorer-1")
def the_scorer_is_killed(world: Any) -> Iterator[Each | None]:
    with world.collecting():
        world.nodes["scorer-1"]["alive"] = False
        world.queues(completions=(GROUPS, 0))
        world.probes.held = {}
        yield None


@stall("worker_stuck", "rollout-2")
def a_worker_lives_without_progress(world: Any) -> Iterator[Each | None]:
    with world.collecting():
        world.tick()
        world.come_back("rollout-1")
        world.nodes["rollout-1"] |= {"state": "waiting", "leases": 0}
        world.queues(prompts=(0, 2))
        world.probes.held = {"prompts": {"rollout-2": 2}}
        yield None


@stall("not_leasing", "rollout-1")
def workers_live_and_take_nothing(world: Any) -> Iterator[Each | None]:
    with world.collecting():
        world.queues(prompts=(GROUPS, 0))
        world.probes.held = {}
        for name in ("rollout-1", "rollout-2"):
            world.nodes[name] |= {"state": "waiting", "leases": 0}
        yield None


@stall("dead_leases", "rollout-1")
def the_worker_with_the_leases_died_and_another_idles(world: Any) -> Iterator[Each | None]:
    with world.collecting():
        world.nodes["rollout-1"]["alive"] = False
        world.nodes["rollout-2"] |= {"state": "waiting", "leases": 0}
        world.probes.held = {"prompts": {"rollout-1": 4}}
        yield None


@stall("fetch_stuck", "rollout-")
def weights_do_not_get_through(world: Any) -> Iterator[Each | None]:
    world.facts["policy_version"] += 1
    with world.collecting():
        for name in ("rollout-1", "rollout-2"):
            world.nodes[name] |= {"state": "swapping", "detail": "waiting for weights"}
        yield None


@stall("worker_behind", "rollout-1")
def a_worker_samples_with_weights_too_old(world: Any) -> Iterator[Each | None]:
    world.facts["policy_version"] += 3
    world.nodes["rollout-2"]["policy_version"] += 3

    def each() -> None:
        if int(world.time) % 2:
            world.come_back()
            world.groups["stale"] += 1

    with world.collecting():
        yield each


@stall("scorer_stuck", "scorer-1")
def the_scorer_hangs_in_a_reward(world: Any) -> Iterator[Each | None]:
    with world.collecting():
        for name in ("rollout-1", "rollout-2"):
            world.nodes[name] |= {"state": "waiting", "leases": 0}
        world.nodes["scorer-1"] |= {"state": "scoring", "detail": "group 17"}
        world.queues(completions=(GROUPS - 1, 1))
        world.probes.held = {"completions": {"scorer-1": 1}}
        yield None


@stall("scorer_behind", "scorer-1")
def generated_groups_pile_up(world: Any) -> Iterator[Each | None]:
    def each() -> None:
        # It scores held-out prompts and groups of other steps, one in four seconds.
        world.queues(completions=(GROUPS, 1))
        if int(world.time) % 4 == 0:
            world.nodes["scorer-1"]["groups_finished"] += 1

    with world.collecting():
        world.nodes["scorer-1"] |= {"state": "scoring"}
        world.probes.held = {"completions": {"scorer-1": 1}}
        yield each


@stall("judge_breaker_open", "judge")
def the_breaker_of_the_judge_is_open(world: Any) -> Iterator[Each | None]:
    reason = "judge: the judge abstained (clarity: judge_circuit_open)"

    def each() -> None:
        if int(world.time) % 2:
            world.come_back()
            world.groups["no_signal"] += 1
            world.pace.unscored(reason)

    with world.collecting():
        yield each


@stall("no_signal", "rewards")
def every_group_is_filtered(world: Any) -> Iterator[Each | None]:
    def each() -> None:
        if int(world.time) % 2:
            world.come_back()
            world.groups["no_signal"] += 1

    with world.collecting():
        yield each


@stall("groups_fail", "rollout-1")
def every_group_goes_to_the_quarantine(world: Any) -> Iterator[Each | None]:
    def each() -> None:
        if int(world.time) % 3 == 0:
            world.arrived += 1
            world.pace.arrived(world.arrived)
            world.groups["quarantined"] += 1

    with world.collecting():
        world.nodes["rollout-1"]["last_error"] = "group 3: CUDA error"
        yield each


@stall("groups_missing", "redis")
def another_program_empties_the_server(world: Any) -> Iterator[Each | None]:
    with world.collecting():
        world.queues()
        world.probes.held = {}
        world.groups["in_flight"] = 0
        for name in ("rollout-1", "rollout-2"):
            world.nodes[name] |= {"state": "waiting", "leases": 0}
        yield None


@stall("evaluation_holds", "evaluation")
def training_groups_wait_behind_held_out_prompts(world: Any) -> Iterator[Each | None]:
    with world.collecting():
        world.queues(prompts=(GROUPS, 0), eval_=2)
        world.probes.held = {"eval_prompts": {"rollout-1": 1, "rollout-2": 1}}
        yield None


@stall("worker_stuck", "rollout-1")
def a_worker_hangs_in_an_evaluation_that_training_waits_for(world: Any) -> Iterator[Each | None]:
    world.take(EVALUATION, 5, arrivals=True)
    world.take(EVALUATION, 5, arrivals=True)
    world.nodes["rollout-1"] |= {"state": "generating", "leases": 2}
    world.queues(eval_=2)
    world.probes.held = {"eval_prompts": {"rollout-1": 2}}
    with world.pace.phase(EVALUATION, world.step + 1):
        yield None


@stall("learner_stuck", "learner")
def the_learner_waits_for_a_dead_gpu(world: Any) -> Iterator[Each | None]:
    with world.pace.phase(LEARN, world.step + 1):
        yield None


@stall("learner_slow", "learner")
def the_learner_shares_its_machine(world: Any) -> Iterator[Each | None]:
    def each() -> None:
        world.probes.cpu += 0.5

    with world.pace.phase(LEARN, world.step + 1):
        yield each


@stall("disk_full", "disk of the run directory")
def the_disk_fills_up_under_a_checkpoint(world: Any) -> Iterator[Each | None]:
    world.probes.free = 1 << 20
    with world.pace.phase(CHECKPOINT, world.step + 1):
        yield None


@stall("disk_full", "disk of rollout")
def the_disk_of_a_worker_is_full(world: Any) -> Iterator[Each | None]:
    world.facts["policy_version"] += 1
    with world.collecting():
        for name in ("rollout-1", "rollout-2"):
            world.nodes[name] |= {"state": "swapping", "last_error": "[Errno 28] No space left on device"}
        yield None


@stall("writing_slow", "disk of the run directory")
def a_slow_disk_holds_the_publication(world: Any) -> Iterator[Each | None]:
    with world.pace.phase(PUBLISH, world.step + 1):
        yield None


@stall("clock_jumped", "clock")
def the_clock_of_the_server_jumps(world: Any) -> Iterator[Each | None]:
    with world.collecting():
        world.ticks(4)
        world.probes.server_moved = -600.0  # leases last ten minutes longer now
        for name in ("rollout-1", "rollout-2"):
            world.nodes[name] |= {"state": "waiting", "leases": 0}
        yield None


@stall("generation_slow", "rollout-2")
def one_worker_of_two_is_gone_and_the_other_goes_on(world: Any) -> Iterator[Each | None]:
    def each() -> None:
        if int(world.time) % 4 == 0:
            world.come_back("rollout-1")

    with world.collecting():
        world.nodes["rollout-2"]["alive"] = False
        yield each


@pytest.fixture(scope="module")
def named() -> Iterator[list[dict[str, object]]]:
    """What each stall came to; written down for whoever asks for it."""
    found: list[dict[str, object]] = []
    yield found
    if os.environ.get("TERSELY_STALLS"):
        Path(os.environ["TERSELY_STALLS"]).write_text(json.dumps(found, indent=1) + "\n")


@pytest.mark.parametrize("case", STALLS)
def test_a_stall_is_named_for_what_it_is(case: str, tmp_path: Path, named: list[dict[str, object]]) -> None:
    name, part, make = STALLS[case]
    world = World(tmp_path)
    for _ in range(10):
        world.calm_step(checkpoint=1)
    assert world.watch.said is None
    going = make(world)
    each = next(going) or nothing
    said, seconds = world.until_named(each)
    named.append({"name": case, "seconds_to_name": seconds, "named_right": said == name})
    assert said == name, world.written("stall")
    assert seconds <= WITHIN_SECONDS
    assert world.watch.said is not None
    assert part in world.watch.said.part
    assert world.watch.said.step == world.step + 1
    assert world.shown is not None
    assert world.shown["name"] == name
    assert all(world.shown[key] for key in ("message", "cause", "change"))
    for _ in range(10):  # it stays with that, as long as nothing changes
        each()
        world.tick()
        assert world.watch.said is not None
        assert world.watch.said.name == name
    assert [event["name"] for event in world.written("stall")] == [name]
    next(going, None)


def test_nearly_all_names_are_seen_here() -> None:
    seen = {name for name, _, _ in STALLS.values()}
    assert set(NAMES) - seen <= {"rewards_absent", "unexplained"}
    assert seen <= set(NAMES)
