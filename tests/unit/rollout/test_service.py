"""The rollout process on a real server, real streams and a real checkpoint channel; only the learner is missing."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
import torch
from safetensors.torch import load_file

from tersely.config.schema import Recipe
from tersely.errors import ConfigValue
from tersely.models.tiny import make_tiny_model
from tersely.models.tokenizer import PolicyTokenizer
from tersely.node.heartbeat import read_nodes
from tersely.node.options import ServiceOptions
from tersely.node.servicer import NodeServicer
from tersely.queue import RunKeys, WorkStream, connect
from tersely.queue.embedded import EmbeddedServer
from tersely.rollout.service import run_rollout
from tersely.rpc.server import GrpcServer
from tersely.testing.engines import group
from tersely.types import GroupId, RunId, WeightsLabel
from tersely.v1 import group_pb2
from tersely.weights.servicer import CheckpointServicer
from tersely.weights.shelf import DeltaShelf
from tersely.weights.store import SnapshotStore

KEYS = RunKeys(RunId("r-1"))
START = """
import sys
from tersely.node.options import ServiceOptions
from tersely.rollout.service import run_rollout
sys.exit(run_rollout(ServiceOptions(trainer=sys.argv[1], engine=sys.argv[2], threads=1)))
"""


class Trainer:
    """What a worker sees of a trainer."""

    def __init__(self, folder: Path, server: EmbeddedServer) -> None:
        self.model = make_tiny_model(folder / "model")
        self.stop_ids = PolicyTokenizer.from_folder(self.model).stop_token_ids
        self.store = SnapshotStore("r-1", self.model, self.stop_ids, 64 << 10, incarnation=1, keep=2)
        self.shelf = DeltaShelf(self.store, threads=1)
        checkpoints = CheckpointServicer(self.store, self.shelf)
        self.grpc = GrpcServer("127.0.0.1", 0, False)
        self.grpc.add(NodeServicer("r-1", Recipe().model_dump_json(), server.url, 1).register)
        self.grpc.add(checkpoints.register, checkpoints.close)
        self.address = self.grpc.start()
        self.client: redis.Redis = connect(server.url)
        self.prompts = self.stream(KEYS.prompts, "rollout")
        self.completions = self.stream(KEYS.completions, "scorer")

    def stream(self, key: str, name: str) -> WorkStream:
        made = WorkStream(self.client, key, name, "test", lease_seconds=60, quarantine_key=KEYS.quarantine)
        made.create()
        return made

    def publish(self, version: int) -> WeightsLabel:
        weights = {
            k: (v * (1 + 0.1 * version)).bfloat16() for k, v in load_file(self.model / "model.safetensors").items()
        }
        return self.store.publish(version, weights)

    def issue(self, name: str, label: WeightsLabel, limit: int = 8) -> group_pb2.PromptGroup:
        asked = group([3, 4, 5, 6], name=name, exact=True, limit=limit, stop=() if limit > 8 else self.stop_ids)
        asked.required_weights.CopyFrom(label.to_proto())
        self.prompts.add(GroupId(name), asked.SerializeToString())
        return asked

    def result(self) -> group_pb2.CompletionGroup:
        (lease,) = self.completions.lease(1, 60)
        self.completions.ack([lease])
        return group_pb2.CompletionGroup.FromString(lease.payload)

    def close(self) -> None:
        self.grpc.stop(0.2)
        self.client.close()


@pytest.fixture
def trainer(tmp_path: Path) -> Iterator[Trainer]:
    torch.set_num_threads(1)
    with EmbeddedServer(tmp_path / "valkey") as server:
        made = Trainer(tmp_path, server)
        yield made
        made.close()


@pytest.fixture
def start(trainer: Trainer, tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []

    def make(engine: str) -> subprocess.Popen[bytes]:
        environ = os.environ | {"TERSELY_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
        started.append(subprocess.Popen([sys.executable, "-c", START, trainer.address, engine], env=environ))
        return started[-1]

    yield make
    for process in started:
        process.kill()
        process.wait(10)


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.02)


Start = Callable[[str], "subprocess.Popen[bytes]"]


def test_a_worker_joins_generates_swaps_without_restart_and_drains(trainer: Trainer, start: Start) -> None:
    process = start("torch")
    first = trainer.publish(0)
    asked = trainer.issue("one", first)
    result = trainer.result()
    assert result.prompt == asked
    assert {s.weights.policy_version for c in result.completions for s in c.version_spans} == {0}
    (beat,) = read_nodes(trainer.client, KEYS)
    assert (beat.node_id, beat.pid) == (result.rollout_node_id, process.pid)

    second = trainer.publish(1)
    trainer.issue("one", second)
    swapped = trainer.result()
    assert swapped.rollout_node_id == result.rollout_node_id
    assert {s.weights.weights_sha256 for c in swapped.completions for s in c.version_spans} == {second.weights_sha256}
    assert [list(c.token_ids) for c in swapped.completions] != [list(c.token_ids) for c in result.completions]

    trainer.issue("long", second, limit=4_000)
    until(lambda: trainer.prompts.depth().leased == 1)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    (lease,) = trainer.prompts.lease(5, 0)
    assert (lease.group_id, lease.strikes, lease.expired_leases) == ("long", 0, 0)
    assert trainer.completions.depth().total == 0
    assert read_nodes(trainer.client, KEYS) == []


def test_new_weights_come_as_deltas_and_a_useless_one_is_counted_in_the_heartbeat(
    trainer: Trainer, start: Start
) -> None:
    start("torch")
    trainer.issue("one", trainer.publish(0))
    trainer.result()
    second = trainer.publish(1)
    trainer.issue("two", second)
    trainer.result()
    assert trainer.shelf.encoded == 1
    held = trainer.store._held[second]
    other = bytearray(held.payload)
    other[100] ^= 1
    trainer.store._held[second] = dataclasses.replace(held, payload=memoryview(other))
    third = trainer.publish(2)
    trainer.issue("three", third)
    result = trainer.result()
    assert trainer.shelf.encoded == 2
    assert {s.weights.weights_sha256 for c in result.completions for s in c.version_spans} == {third.weights_sha256}
    until(lambda: [node.delta_fallbacks for node in read_nodes(trainer.client, KEYS)] == [1])


def test_a_worker_that_waits_for_its_first_version_drains_at_once(trainer: Trainer, start: Start) -> None:
    process = start("stub")
    until(lambda: len(read_nodes(trainer.client, KEYS)) == 1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0


def test_without_an_address_there_is_nothing_to_join() -> None:
    with pytest.raises(ConfigValue, match="address"):
        run_rollout(ServiceOptions())
