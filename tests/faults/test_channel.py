"""The checkpoint channel when things break: found, recovered, and never served as what it is not."""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch

from tersely.errors import TerselyError, TrainerUnreachable, WeightsUnavailable
from tersely.rpc.client import dial
from tersely.rpc.errors import code_and_details
from tersely.rpc.server import GrpcServer
from tersely.testing.channel import MeddlingServicer, connected, hash_of, make_weights, served, stepped
from tersely.types import WeightsLabel
from tersely.v1.checkpoint_pb2 import FetchWeightsRequest, FetchWeightsResponse
from tersely.v1.checkpoint_pb2_grpc import CheckpointServiceStub
from tersely.weights import shelf as shelf_module
from tersely.weights.shelf import DeltaShelf
from tersely.weights.store import SnapshotStore

CHUNK = 2048


@pytest.fixture
def store(tmp_path: Path) -> SnapshotStore:
    return make_store(tmp_path)


def make_store(folder: Path, *, keep: int = 3, incarnation: int = 1) -> SnapshotStore:
    return SnapshotStore("r-1", folder, (2,), CHUNK, incarnation=incarnation, keep=keep)


@pytest.fixture
def servicer(store: SnapshotStore) -> MeddlingServicer:
    return MeddlingServicer(store, DeltaShelf(store, threads=1))


@pytest.fixture
def address(servicer: MeddlingServicer) -> Iterator[str]:
    with served(servicer) as address:
        yield address


def test_a_byte_flipped_in_any_chunk_of_a_full_copy_is_found(
    store: SnapshotStore, servicer: MeddlingServicer, address: str
) -> None:
    label = store.publish(0, make_weights(size=5_000))
    chunks = -(-len(store.get(label).payload) // CHUNK)
    assert chunks >= 9
    with connected(address) as client:
        for flipped in range(1, chunks + 1):
            left = [flipped]

            def flip(number: int, message: FetchWeightsResponse, left: list[int] = left) -> FetchWeightsResponse:
                if number in left:
                    left.clear()
                    data = bytearray(message.data)
                    data[len(data) * 2 // 3] ^= 1
                    message.data = bytes(data)
                return message

            servicer.meddle = flip
            assert hash_of(client.fetch(label)) == label.weights_sha256
            assert client.counts.mismatches == flipped


def test_a_full_copy_cut_at_twenty_offsets_is_resumed_at_each(
    store: SnapshotStore, servicer: MeddlingServicer, address: str
) -> None:
    label = store.publish(0, make_weights())
    cuts = [i * CHUNK for i in range(1, 21)]
    assert cuts[-1] < len(store.get(label).payload)

    def cut(number: int, message: FetchWeightsResponse) -> FetchWeightsResponse:
        if number and cuts and message.offset_bytes == cuts[0]:
            del cuts[0]
            raise TrainerUnreachable("cut")
        return message

    servicer.meddle = cut
    with connected(address) as client:
        assert hash_of(client.fetch(label)) == label.weights_sha256
        assert [request.offset_bytes for request in servicer.requests] == [i * CHUNK for i in range(21)]
        assert client.counts.payload_bytes == len(store.get(label).payload)


@pytest.mark.parametrize("still_there", [True, False])
def test_a_trainer_restarted_in_the_middle_of_a_full_copy(
    tmp_path: Path, store: SnapshotStore, servicer: MeddlingServicer, still_there: bool
) -> None:
    weights = make_weights()
    label = store.publish(4, weights)
    half_way, outcome = threading.Event(), list[WeightsLabel | dict[str, torch.Tensor] | TerselyError]()

    def slowly(number: int, message: FetchWeightsResponse) -> FetchWeightsResponse:
        if number == 10:
            half_way.set()
        time.sleep(0.01)
        return message

    servicer.meddle = slowly
    again = make_store(tmp_path, incarnation=2)
    again.publish(4 if still_there else 5, weights if still_there else make_weights(1))
    after = MeddlingServicer(again)
    server = GrpcServer()
    server.add(servicer.register, servicer.close)
    address = server.start()
    with connected(address) as client:

        def fetch() -> None:
            try:
                outcome.append(client.fetch(label))
            except WeightsUnavailable as error:
                outcome.append(error)

        thread = threading.Thread(target=fetch)
        thread.start()
        assert half_way.wait(30)
        server.stop(grace_seconds=0)
        with served(after, port=int(address.rpartition(":")[2])):
            thread.join(60)
    assert len(outcome) == 1
    assert after.requests[0].offset_bytes > 0
    if still_there:
        assert isinstance(outcome[0], dict)
        assert hash_of(outcome[0]) == label.weights_sha256
    else:
        assert isinstance(outcome[0], WeightsUnavailable)


def test_a_reader_that_stalls_is_ended_and_may_resume(store: SnapshotStore) -> None:
    servicer = MeddlingServicer(store, stall_seconds=1.0)
    label = store.publish(0, make_weights(size=2_000_000))
    with served(servicer) as address, dial(address) as channel, connected(address) as client:
        stuck = CheckpointServiceStub(channel).FetchWeights(FetchWeightsRequest(want=label.to_proto()), timeout=60)
        next(stuck)
        wait_for(lambda: servicer._readers.ended == 1)
        assert hash_of(client.fetch(label)) == label.weights_sha256
        assert servicer._readers._readers == {}
        with pytest.raises(grpc.RpcError) as caught:
            list(stuck)
        assert code_and_details(caught.value)[0] is grpc.StatusCode.UNAVAILABLE  # which a client resumes after


def test_readers_that_stall_keep_few_versions_alive(tmp_path: Path) -> None:
    store = make_store(tmp_path, keep=1)
    servicer = MeddlingServicer(store)
    weights = make_weights(size=2_000_000)
    with served(servicer) as address, dial(address) as channel:
        stub, stuck = CheckpointServiceStub(channel), []
        for version in range(6):
            label = store.publish(version, weights)
            for _ in range(2):
                stuck.append(stub.FetchWeights(FetchWeightsRequest(want=label.to_proto()), timeout=60))
                next(stuck[-1])
        # The newest, and two that only readers hold.
        wait_for(lambda: len({reader.snapshot.label for reader in servicer._readers._readers}) <= 3)
        assert servicer._readers.ended == 6
        for call in stuck:
            call.cancel()


def test_readers_that_wait_for_deltas_keep_few_versions_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    encode = shelf_module.encode_delta

    def slowly(*args: Any) -> bytes:
        assert go_on.wait(60)
        return encode(*args)

    monkeypatch.setattr(shelf_module, "encode_delta", slowly)
    store = make_store(tmp_path, keep=2)
    servicer = MeddlingServicer(store)
    weights = make_weights()
    with served(servicer) as address, dial(address) as channel:
        stub, waiting = CheckpointServiceStub(channel), []
        label = store.publish(0, weights)
        for version in range(1, 13):
            base, weights = label, stepped(weights, version)
            label = store.publish(version, weights)
            request = FetchWeightsRequest(
                want=label.to_proto(), base_weights_sha256=base.weights_sha256, node_id=f"w-{version}"
            )
            waiting.append(stub.FetchWeights(request, timeout=60))
            wait_for(lambda version=version: len(servicer.requests) == version)  # type: ignore[misc]
        # The newest two, and two that only readers hold.
        wait_for(lambda: servicer._readers.ended == 8)
        assert len(servicer._readers._readers) == 4
        assert len(servicer._shelf._made) <= 5  # those of the readers left, and the one that had begun
        go_on.set()
        assert b"".join(message.data for message in waiting[-1])
        for call in waiting:
            call.cancel()


def test_whatever_happens_on_the_way_no_tensors_come_that_are_not_those_of_the_label(
    store: SnapshotStore, servicer: MeddlingServicer, address: str
) -> None:
    draw = random.Random(0)
    done: Counter[str] = Counter()

    def meddle(number: int, message: FetchWeightsResponse) -> FetchWeightsResponse:
        if draw.random() < 0.9:
            return message
        what = draw.choice(["cut", "flip", "shorten", "move", "relabel", "rename", "other"])
        done[what] += 1
        if what == "cut":
            raise TrainerUnreachable("cut")
        if what == "flip" and message.data:
            data = bytearray(message.data)
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
            message.data = bytes(data)
        elif what == "shorten":
            message.data = message.data[: draw.randrange(len(message.data) + 1)]
        elif what == "move":
            message.offset_bytes = draw.randrange(50_000)
        elif what == "relabel" and number == 0:
            message.manifest.weights.policy_version += 1
        elif what == "rename" and number == 0:
            tensors = message.manifest.tensors
            tensors[1].name, tensors[3].name = tensors[3].name, tensors[1].name
        elif what == "other" and number == 0 and message.base_weights_sha256:
            message.base_weights_sha256 = ""
        return message

    weights, held, fetched, refused = make_weights(), None, 0, 0
    with connected(address) as client:
        for version in range(60):
            servicer.meddle = meddle
            weights = stepped(weights, version)
            label = store.publish(version, weights)
            try:
                tensors = client.fetch(label, held)
            except TerselyError:
                refused += 1
                continue
            assert hash_of(tensors) == label.weights_sha256
            held, fetched = label, fetched + 1
    assert min(done.values()) >= 3, done
    assert fetched >= 20, (fetched, refused)
    assert client.counts.mismatches >= 10


def wait_for(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
