"""A run as the watchdog sees it, with a clock that tests move."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tersely.config import Recipe
from tersely.config.watchdog import WatchdogSection
from tersely.errors import QueueError
from tersely.telemetry.events import EventLog, read_events
from tersely.trainer.watchdog.clock import AwakeClock
from tersely.trainer.watchdog.observer import Observer
from tersely.trainer.watchdog.pace import CHECKPOINT, COLLECT, EVALUATION, LEARN, LOG, PUBLISH, Pace
from tersely.trainer.watchdog.watch import Watch

GROUPS = 4


class FakeProbes:
    """Answers what the test sets."""

    def __init__(self, world: World) -> None:
        self.error: QueueError | None = None
        self.held: Mapping[str, Mapping[str, int]] = {}
        self.free = 10**11
        self.cpu = 0.0
        self.server_moved = 0.0
        self._world = world

    def write(self) -> None:
        if self.error is not None:
            raise self.error

    def holders(self) -> Mapping[str, Mapping[str, int]]:
        return self.held

    def server_seconds(self) -> float:
        return self._world.wall + self.server_moved

    def wall_seconds(self) -> float:
        return self._world.wall

    def disk_free_bytes(self) -> int:
        return self.free

    def cpu_seconds(self) -> float:
        return self.cpu


class World:
    """Two workers, a scorer and a trainer, whose calm steps take a few seconds.

    Args:
        folder: For the events.
        judged: A judge is among the rewards.
        settings: Of the watchdog.
    """

    def __init__(self, folder: Path, settings: WatchdogSection | None = None) -> None:
        self.time, self.wall = 1000.0, 1.7e9
        self.clock = AwakeClock(lambda: self.time, lambda: self.wall)
        self.pace = Pace(self.clock)
        self.probes = FakeProbes(self)
        self.events = EventLog(folder / "events.jsonl")
        self.shown: Mapping[str, Any] | None = None
        self.step = 0
        self.arrived = 0
        self.groups: Counter[str] = Counter({"issued": 0})
        self.nodes: dict[str, dict[str, Any]] = {}
        self.facts: dict[str, Any] = {"policy_version": 0, "queue_error": None, "evaluation": None}
        for name, role in (("rollout-1", "rollout"), ("rollout-2", "rollout"), ("scorer-1", "scorer")):
            self.join(name, role)
        self.queues()
        observer = Observer(Recipe(), self.pace, self.clock, self.status, self.probes)
        self.watch = Watch(
            settings or WatchdogSection(), self.pace, self.clock, observer.look, events=self.events, show=self._show
        )

    def _show(self, stall: Mapping[str, Any] | None) -> None:
        self.shown = stall

    def status(self) -> Mapping[str, Any]:
        return {**self.facts, "nodes": [dict(node) for node in self.nodes.values()], "groups": dict(self.groups)}

    def join(self, name: str, role: str, **facts: Any) -> None:
        self.nodes[name] = {
            "node_id": name,
            "role": role,
            "host": "mac",
            "state": "waiting",
            "detail": "",
            "policy_version": 0,
            "groups_finished": 0,
            "leases": 0,
            "last_error": "",
            "heartbeat": self.wall,
            "alive": True,
            **facts,
        }

    def queues(self, prompts: tuple[int, int] = (0, 0), completions: tuple[int, int] = (0, 0), eval_: int = 0) -> None:
        empty = {"waiting": 0, "leased": 0}
        self.facts["queues"] = {
            "prompts": {"waiting": prompts[0], "leased": prompts[1]},
            "eval_prompts": {**empty, "leased": eval_},
            "completions": {"waiting": completions[0], "leased": completions[1]},
            "scored": empty,
        }

    def tick(self, seconds: float = 1.0) -> None:
        """Time goes by, nodes send heartbeats, the watchdog looks."""

        def wait(asked: float) -> None:
            self.time += asked
            self.wall += asked

        self.clock.wait(seconds, wait)
        for name, node in list(self.nodes.items()):
            if not node["alive"]:
                if self.wall - node["heartbeat"] > 10:
                    del self.nodes[name]  # its key has expired
            elif self.wall - node["heartbeat"] >= 2:
                node["heartbeat"] = self.wall
        self.watch.tick()

    def ticks(self, seconds: float) -> None:
        for _ in range(int(seconds)):
            self.tick()

    def sleep(self, seconds: float, *, monotonic: bool) -> None:
        """The machine sleeps, or the process is stopped, in the middle of a wait of a second."""

        def wait(asked: float) -> None:
            self.time += asked + (seconds if monotonic else 0.0)
            self.wall += asked + seconds

        self.clock.wait(1.0, wait)
        self.watch.tick()

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Groups of a step are on their way."""
        self.groups["issued"] += GROUPS
        self.groups["in_flight"] += GROUPS
        self.queues(prompts=(0, GROUPS))
        for name in ("rollout-1", "rollout-2"):
            if name in self.nodes:
                self.nodes[name] |= {"state": "generating", "leases": GROUPS // 2}
        self.probes.held = {"prompts": {"rollout-1": 2, "rollout-2": 2}}
        with self.pace.phase(COLLECT, self.step + 1):
            yield

    def come_back(self, node: str = "rollout-1") -> None:
        """A group comes back."""
        self.arrived += 1
        self.pace.arrived(self.arrived)
        for name in (node, "scorer-1"):
            if name in self.nodes:
                self.nodes[name]["groups_finished"] += 1

    def calm_step(self, collect: float = 4, learn: float = 2, checkpoint: float = 0, evaluation: float = 0) -> None:
        """A step as it should be."""
        with self.collecting():
            for number in range(GROUPS):
                self.ticks(max(1, collect / GROUPS))
                self.come_back(f"rollout-{1 + number % 2}")
            for name in ("rollout-1", "rollout-2"):
                self.nodes[name] |= {"state": "waiting", "leases": 0}
        self.queues()
        self.groups["in_flight"] -= GROUPS
        self.groups["trained"] += GROUPS
        self.take(LOG, 0)
        self.take(LEARN, learn)
        self.take(PUBLISH, 1)
        self.step += 1
        self.facts["policy_version"] += 1
        for name in ("rollout-1", "rollout-2"):
            self.nodes[name]["policy_version"] = self.facts["policy_version"]
        if checkpoint:
            self.take(CHECKPOINT, checkpoint)
        if evaluation:
            self.take(EVALUATION, evaluation, arrivals=True)

    def take(self, phase: str, seconds: float, *, arrivals: bool = False) -> None:
        with self.pace.phase(phase, self.step + 1):
            for _ in range(int(seconds)):
                self.tick()
                self.probes.cpu += 1
                if arrivals:
                    self.come_back()

    def until_named(self, each: Callable[[], None] = lambda: None, most: float = 60) -> tuple[str, float]:
        """Ticks until the watchdog names something; what, and after how many seconds. Empty: it did not."""
        for seconds in range(1, int(most) + 1):
            each()
            self.tick()
            if self.watch.said is not None:
                return self.watch.said.name, seconds
        return "", most

    def written(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in read_events(self.events.path) if event["kind"] == kind]
