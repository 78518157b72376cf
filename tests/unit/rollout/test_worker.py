from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import redis
import torch

from tersely.errors import LeaseLost, TerselyError, WeightsUnavailable
from tersely.queue import LeaseKeeper, QuarantineReader, RunKeys, WorkStream, connect
from tersely.queue.embedded import EmbeddedServer
from tersely.rollout.engines.base import EngineSettings, GeneratedGroup
from tersely.rollout.engines.stub import StubEngine
from tersely.rollout.fetching import WeightsFetcher
from tersely.rollout.holder import WeightsHolder
from tersely.rollout.leases import LeaseDesk
from tersely.rollout.worker import RolloutWorker
from tersely.testing.engines import LABEL, group
from tersely.types import GroupId, NodeId, PolicyVersion, RunId, WeightsLabel
from tersely.v1 import checkpoint_pb2, group_pb2

OLD = WeightsLabel(PolicyVersion(1), "cc" * 32)


class FakeSource:
    """Announces one label and serves those it is given."""

    def __init__(self, newest: WeightsLabel | None, *served: WeightsLabel) -> None:
        self.newest, self.served = newest, set(served)
        self.withheld: set[WeightsLabel] = set()
        self.fetched: list[WeightsLabel] = []

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
        return None


class FaultyEngine(StubEngine):
    """A stub that can be told to fail on a prompt, or to go on for ever; it notes each group with those beside it."""

    failing: str = ""
    endless = False
    admitted: list[list[str]]
    asked: list[str]

    def admit(self, group: group_pb2.PromptGroup) -> None:
        self.admitted = [*getattr(self, "admitted", []), [*self._running, group.group_id]]
        super().admit(group)

    def step(self) -> list[GeneratedGroup]:
        if self.failing in self._running:
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
        self.stream.create()
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
        self.fetcher = WeightsFetcher(source, pause_seconds=0.01)
        self.worker = RolloutWorker(
            node_id=NodeId("worker"),
            leases=self.leases,
            holder=WeightsHolder(self.engine, source, self.fetcher, folder),
            engine=self.engine,
            decode=lambda ids: " ".join(map(str, ids)),
            report=lambda **fields: self.reports.append(fields),
            stopping=self.stopping,
            swap=swap,
            max_staleness=max_staleness,
            pause_seconds=0.01,
        )

    def consumer(self, name: str, **options: Any) -> WorkStream:
        settings = {"lease_seconds": 60.0, "max_strikes": 3} | options
        return WorkStream(
            self.client, self.keys.prompts, "rollout", name, quarantine_key=self.keys.quarantine, **settings
        )

    def add(self, *groups: group_pb2.PromptGroup) -> None:
        for one in groups:
            self.stream.add(GroupId(one.group_id), one.SerializeToString())

    def run(self, until: Callable[[], bool], seconds: float = 20.0) -> None:
        def target() -> None:
            try:
                self.worker.run()
            except TerselyError as error:
                self.error = error

        with self.keeper, self.fetcher:
            thread = threading.Thread(target=target)
            thread.start()
            deadline = time.monotonic() + seconds
            while not until() and time.monotonic() < deadline:
                time.sleep(0.01)
            self.stopping.set()
            thread.join(seconds)
        assert not thread.is_alive()

    def done(self, count: int) -> Callable[[], bool]:
        return lambda: self.next.depth().total >= count

    def results(self) -> dict[str, group_pb2.CompletionGroup]:
        leases = self.next.lease(100, 0)
        return {lease.group_id: group_pb2.CompletionGroup.FromString(lease.payload) for lease in leases}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[redis.Redis]:
    with EmbeddedServer(tmp_path_factory.mktemp("valkey")) as server:
        made = connect(server.url)
        yield made
        made.close()


@pytest.fixture
def make_ring(client: redis.Redis, tmp_path: Path) -> Callable[..., Ring]:
    return lambda source, **options: Ring(client, tmp_path, source, **options)


MakeRing = Callable[..., Ring]


def test_a_group_is_generated_by_the_weights_it_requires_and_handed_on(make_ring: MakeRing) -> None:
    ring = make_ring(FakeSource(LABEL, LABEL))
    asked = group([1, 2, 3], exact=True)
    ring.add(asked)
    ring.run(until=ring.done(1))
    result = ring.results()["g"]
    assert result.prompt == asked
    assert result.rollout_node_id == "worker"
    assert [c.sample_index for c in result.completions] == [0, 1, 2, 3]
    for completion in result.completions:
        assert completion.version_spans[0].weights == LABEL.to_proto()
        assert completion.text == " ".join(map(str, completion.token_ids))
    assert ring.stream.depth().total == 0
    assert ring.reports[-1]["groups_finished"] == 1
    assert ring.reports[-1]["policy_version"] == 3


def test_no_lease_is_taken_before_a_version_is_held(make_ring: MakeRing) -> None:
    ring = make_ring(FakeSource(None, LABEL))
    ring.add(group([1, 2, 3]))
    ring.run(until=lambda: len(ring.reports) > 5)
    assert {report["state"] for report in ring.reports} == {"starting", "draining"}
    assert ring.stream.depth().leased == 0
    assert ring.stream.depth().waiting == 1


def test_older_required_weights_are_fetched_and_then_the_newest_are_held_again(make_ring: MakeRing) -> None:
    ring = make_ring(FakeSource(LABEL, LABEL, OLD))
    pinned = group([1, 2], name="pinned")
    pinned.required_weights.CopyFrom(OLD.to_proto())
    ring.add(pinned, group([3, 4], name="free"))
    ring.run(until=ring.done(2))
    labels = {name: r.completions[0].version_spans[0].weights.policy_version for name, r in ring.results().items()}
    assert labels == {"pinned": 1, "free": 3}
    assert ring.source.fetched == [LABEL, OLD, LABEL]


def test_groups_without_required_order_share_a_batch_and_exact_ones_do_not(make_ring: MakeRing) -> None:
    ring = make_ring(FakeSource(LABEL, LABEL))
    ring.add(
        *[group([1], name=f"e{n}") for n in range(3)],
        group([1], name="t0", exact=True),
        group([1], name="t1", exact=True),
    )
    ring.run(until=ring.done(5))
    assert ring.engine.admitted == [["e0"], ["e0", "e1"], ["e0", "e1", "e2"], ["t0"], ["t1"]]


def test_weights_that_are_gone_send_the_group_back_and_then_strike_it(make_ring: MakeRing) -> None:
    ring = make_ring(FakeSource(LABEL, LABEL), max_strikes=1)
    pinned = group([1, 2], name="pinned")
    pinned.required_weights.CopyFrom(OLD.to_proto())
    ring.add(pinned)
    reader = QuarantineReader(ring.client, ring.keys.quarantine)
    found: list[group_pb2.QuarantinedGroup] = []
    ring.run(until=lambda: bool(found.extend(reader.read()) or found))
    assert (found[0].group_id, found[0].error_kind, found[0].strikes) == ("pinned", "weights_unavailable", 1)
    assert ring.done(0)()
    assert ring.results() == {}


def test_a_failing_group_is_struck_until_quarantine_and_its_companions_are_generated(make_ring: MakeRing) -> None:
    ring = make_ring(FakeSource(LABEL, LABEL))
    ring.engine.failing = "bad"
    ring.add(group([1], name="good1"), group([1], name="bad"), group([1], name="good2"))
    reader = QuarantineReader(ring.client, ring.keys.quarantine)
    found: list[group_pb2.QuarantinedGroup] = []
    ring.run(until=lambda: bool(found.extend(reader.read()) or found))
    assert (found[0].group_id, found[0].strikes, found[0].error_kind) == ("bad", 3, "engine_failed")
    assert "out of memory" in found[0].error_message
    assert set(ring.results()) == {"good1", "good2"}
    assert "out of memory" in ring.reports[-1]["last_error"]


def test_an_entry_that_is_no_group_is_struck(make_ring: MakeRing) -> None:
    ring = make_ring(FakeSource(LABEL, LABEL), max_strikes=1)
    ring.stream.add(GroupId("junk"), b"\xff\xff")
    ring.add(group([1], name="good"))
    ring.run(until=ring.done(1))
    assert set(ring.results()) == {"good"}
    assert ring.stream.depth().total == 0


def test_a_drain_abandons_generation_and_gives_leases_back_without_a_strike(make_ring: MakeRing) -> None:
    ring = make_ring(FakeSource(LABEL, LABEL))
    ring.engine.endless = True
    ring.add(group([1], name="a"), group([1], name="b"))
    ring.run(until=lambda: ring.stream.depth().leased == 2 and ring.reports[-1]["state"] == "generating")
    assert ring.error is None
    assert ring.results() == {}
    given_back = ring.consumer("other").lease(10, 0)
    assert sorted((lease.group_id, lease.strikes, lease.expired_leases) for lease in given_back) == [
        ("a", 0, 0),
        ("b", 0, 0),
    ]


def test_a_lease_lost_to_another_worker_is_dropped_and_counted(
    make_ring: MakeRing, monkeypatch: pytest.MonkeyPatch
) -> None:
    ring = make_ring(FakeSource(LABEL, LABEL))

    def lost(*_: object) -> None:
        raise LeaseLost("gone")

    monkeypatch.setattr(ring.stream, "forward", lost)
    ring.add(group([1], name="a"))
    ring.run(until=lambda: ring.leases.lost_count == 1)
    assert ring.leases.lost_count == 1
    assert ring.worker.groups_finished == 0
    assert ring.results() == {}


def test_generation_stops_when_all_its_leases_have_gone_to_others(make_ring: MakeRing) -> None:
    ring = make_ring(FakeSource(LABEL, LABEL), lease_seconds=3.0)
    ring.engine.endless = True
    ring.add(group([1], name="a"))
    thief = ring.consumer("thief", lease_seconds=3.0)

    def steal() -> bool:
        if ring.stream.depth().leased == 1 and ring.leases.lost_count == 0:
            (entry,) = ring.client.xpending_range(ring.keys.prompts, "rollout", "-", "+", 1)
            ring.client.xclaim(ring.keys.prompts, "rollout", "thief", 0, [entry["message_id"]], justid=True)
        return ring.leases.lost_count == 1

    ring.run(until=steal)
    assert ring.leases.lost_count == 1
    assert [lease.group_id for lease in thief.pending_of_consumer()] == ["a"]


def test_a_server_that_is_gone_ends_the_stay_after_the_patience(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path / "valkey") as server:
        client = connect(server.url, timeout_seconds=0.5)
        ring = Ring(client, tmp_path, FakeSource(LABEL, LABEL))

        def stop_server() -> bool:
            if ring.reports and ring.reports[-1]["state"] == "waiting":
                server.stop()
            return ring.error is not None

        ring.run(until=stop_server)
    client.close()
    assert ring.error is not None
    assert ring.error.kind == "redis_unreachable"
