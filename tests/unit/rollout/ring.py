"""A worker with its streams on a real server; source and engine do as they are told."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import redis
import torch

from tersely.errors import EngineFailed, TerselyError, WeightsUnavailable
from tersely.queue import LeaseKeeper, RunKeys, WorkStream
from tersely.rollout.engines.base import Capabilities, EngineSettings, GeneratedGroup
from tersely.rollout.engines.stub import StubEngine
from tersely.rollout.fetching import WeightsFetcher
from tersely.rollout.holder import WeightsHolder
from tersely.rollout.leases import LeaseDesk
from tersely.rollout.worker import RolloutWorker
from tersely.types import GroupId, NodeId, PolicyVersion, RunId, WeightsLabel
from tersely.v1 import checkpoint_pb2, group_pb2

OLD = WeightsLabel(PolicyVersion(1), "cc" * 32)
NEXT, LATER = WeightsLabel(PolicyVersion(4), "dd" * 32), WeightsLabel(PolicyVersion(5), "ee" * 32)


class FakeSource:
    """Announces one label and serves those it is given."""

    def __init__(self, newest: WeightsLabel | None, *served: WeightsLabel) -> None:
        self.newest, self.served = newest, set(served)
        self.withheld: set[WeightsLabel] = set()
        self.fetched: list[WeightsLabel] = []
        self.probes: dict[WeightsLabel, checkpoint_pb2.Probe] = {}

    def wait_for_version(
        self, timeout_seconds: float | None, other_than: WeightsLabel | None = None
    ) -> checkpoint_pb2.WeightsManifest | None:
        if self.newest is None:
            time.sleep(0.01)
            return None
        return checkpoint_pb2.WeightsManifest(weights=self.newest.to_proto())

    def fetch(self, want: WeightsLabel, base: WeightsLabel | None = None) -> dict[str, torch.Tensor]:
        while want in self.withheld:
            time.sleep(0.005)
        if want not in self.served:
            raise WeightsUnavailable(f"no {want}")
        self.fetched.append(want)
        return {"w": torch.zeros(2)}

    def manifest(self, label: WeightsLabel) -> checkpoint_pb2.WeightsManifest | None:
        return checkpoint_pb2.WeightsManifest(weights=label.to_proto(), probe=self.probes.get(label))


class FaultyEngine(StubEngine):
    """A stub that can be told to fail on a prompt, or to go on for ever; it notes each group with those beside it."""

    failing: str = ""
    endless = False
    models = False
    unfit: WeightsLabel | None = None
    swap_failures = 0
    broken = False
    admitted: list[list[str]]

    def admit(self, group: group_pb2.PromptGroup) -> None:
        self.admitted = [*getattr(self, "admitted", []), [*self._running, group.group_id]]
        super().admit(group)

    def swap(self, label: WeightsLabel, weights: Any) -> None:
        if label == self.unfit:
            raise EngineFailed("they do not fit")
        if self.swap_failures:
            self.swap_failures -= 1
            raise RuntimeError("not enough memory")
        super().swap(label, weights)

    def capabilities(self) -> Capabilities:
        can = super().capabilities()
        return dataclasses.replace(can, dtype="float32", logprob_tolerance=1e-3) if self.models else can

    def step(self) -> list[GeneratedGroup]:
        if self.broken or any(self.failing and name.startswith(self.failing) for name in self._running):
            raise RuntimeError("out of memory")
        if self.endless:
            time.sleep(0.005)
            return []
        return super().step()


class Ring:
    """A worker on a real server, run in a thread until what a test waits for has come."""

    def __init__(
        self,
        client: redis.Redis,
        folder: Path,
        source: FakeSource,
        swap: Literal["drain", "inflight"] = "drain",
        max_staleness: int = 0,
        **options: Any,
    ) -> None:
        self.client, self.keys = client, RunKeys(RunId(folder.name))
        self.stream = self.consumer("worker", **options)
        self.evaluation_prompts = self.consumer("worker", key=self.keys.evaluation_prompts, **options)
        self.stream.create()
        self.evaluation_prompts.create()
        self.next = WorkStream(
            client, self.keys.completions, "scorer", "s", lease_seconds=60, quarantine_key=self.keys.quarantine
        )
        self.next.create()
        self.source, self.stopping = source, threading.Event()
        self.engine = FaultyEngine(EngineSettings(batch_sequences=12), step_tokens=1)
        (folder / "config.json").write_text(json.dumps({"vocab_size": 50}))
        self.reports: list[dict[str, Any]] = []
        self.error: TerselyError | None = None
        self.keeper = LeaseKeeper(self.stream)
        self.leases = LeaseDesk(self.stream, self.keys.completions, self.keeper, self.stopping, 0.2, 0.01)
        self.evaluation_keeper = LeaseKeeper(self.evaluation_prompts)
        self.evaluations = LeaseDesk(
            self.evaluation_prompts, self.keys.completions, self.evaluation_keeper, self.stopping, 0.2, 0.01
        )
        self.fetcher = WeightsFetcher(source, pause_seconds=0.01)
        self.worker = RolloutWorker(
            node_id=NodeId("worker"),
            leases=self.leases,
            evaluations=self.evaluations,
            holder=WeightsHolder(self.engine, source, self.fetcher, folder),
            engine=self.engine,
            decode=lambda ids: " ".join(map(str, ids)),
            report=lambda **fields: self.reports.append(fields),
            stopping=self.stopping,
            swap=swap,
            max_staleness=max_staleness,
            pause_seconds=0.01,
        )

    def consumer(self, name: str, key: str = "", **options: Any) -> WorkStream:
        settings = {"lease_seconds": 60.0, "max_strikes": 3} | options
        key = key or self.keys.prompts
        return WorkStream(self.client, key, "rollout", name, quarantine_key=self.keys.quarantine, **settings)

    def add(self, *groups: group_pb2.PromptGroup) -> None:
        for one in groups:
            self.stream.add(GroupId(one.group_id), one.SerializeToString())

    def add_evaluation(self, *groups: group_pb2.PromptGroup) -> None:
        for one in groups:
            self.evaluation_prompts.add(GroupId(one.group_id), one.SerializeToString())

    def run(self, until: Callable[[], bool], seconds: float = 20.0) -> None:
        def target() -> None:
            try:
                self.worker.run()
            except TerselyError as error:
                self.error = error

        with self.keeper, self.evaluation_keeper, self.fetcher:
            thread = threading.Thread(target=target)
            thread.start()
            deadline = time.monotonic() + seconds
            while not until() and time.monotonic() < deadline:
                time.sleep(0.01)
            self.stopping.set()
            thread.join(seconds)
        assert not thread.is_alive()

    def play(self, *course: tuple[Callable[[], bool], Callable[[], object]]) -> None:
        """Runs; does each thing once what is before it has come true, and drains after the last."""
        left = list(course)

        def over() -> bool:
            if left and left[0][0]():
                left.pop(0)[1]()
            return not left or self.error is not None

        self.run(over)

    def spans(self) -> dict[str, set[tuple[int, ...]]]:
        """Versions of the spans of each completion, by group."""
        return {
            name: {tuple(s.weights.policy_version for s in c.version_spans) for c in result.completions}
            for name, result in self.results().items()
        }

    def leased(self) -> int:
        return self.stream.depth().leased

    def admitted(self) -> list[str]:
        return [names[-1] for names in getattr(self.engine, "admitted", [])]

    def done(self, count: int) -> Callable[[], bool]:
        return lambda: self.next.depth().total >= count

    def results(self) -> dict[str, group_pb2.CompletionGroup]:
        leases = self.next.lease(100, 0)
        return {lease.group_id: group_pb2.CompletionGroup.FromString(lease.payload) for lease in leases}
