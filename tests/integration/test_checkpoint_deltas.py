"""Deltas over real sockets: sent when shorter, shared, resumed, given up for a full copy when anything is wrong."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from tersely.errors import TrainerUnreachable
from tersely.rpc.client import dial
from tersely.rpc.server import GrpcServer
from tersely.testing.channel import MeddlingServicer, connected, equal_bits, make_weights, served, stepped
from tersely.testing.proxy import CuttingProxy
from tersely.types import WeightsLabel
from tersely.v1 import checkpoint_pb2, checkpoint_pb2_grpc
from tersely.weights import shelf as shelf_module
from tersely.weights.client import WeightsClient
from tersely.weights.shelf import DeltaShelf
from tersely.weights.store import SnapshotStore

SIZE = 300_000
Weights = dict[str, torch.Tensor]
MakeClient = Callable[[str], WeightsClient]


@pytest.fixture
def store(tmp_path: Path) -> SnapshotStore:
    return SnapshotStore("r-1", tmp_path, (2,), 1024, incarnation=1, keep=12)


@pytest.fixture
def servicer(store: SnapshotStore) -> MeddlingServicer:
    servicer = MeddlingServicer(store, DeltaShelf(store, threads=1))
    servicer.deltas_only = True
    return servicer


@pytest.fixture
def address(servicer: MeddlingServicer) -> Iterator[str]:
    with served(servicer) as address:
        yield address


@pytest.fixture
def make_client() -> Iterator[MakeClient]:
    with ExitStack() as stack:
        yield lambda address: stack.enter_context(connected(address))


def publish(store: SnapshotStore, count: int, first: int = 0) -> tuple[list[WeightsLabel], list[Weights]]:
    versions = [make_weights(size=SIZE)]
    for i in range(1, count):
        versions.append(stepped(versions[-1], i))
    return [store.publish(first + i, weights) for i, weights in enumerate(versions)], versions


def test_the_next_version_comes_as_a_delta(store: SnapshotStore, address: str, make_client: MakeClient) -> None:
    labels, versions = publish(store, 3)
    client = make_client(address)
    assert equal_bits(client.fetch(labels[0]), versions[0])
    full_bytes = client.counts.payload_bytes
    assert equal_bits(client.fetch(labels[1], labels[0]), versions[1])
    assert equal_bits(client.fetch(labels[2], labels[1]), versions[2])
    assert client.counts.payload_bytes - full_bytes < full_bytes / 5
    assert (client.counts.full_copies, client.counts.deltas, client.delta_fallbacks) == (1, 2, 0)


def test_a_worker_eight_versions_behind_gets_one_delta(
    store: SnapshotStore, address: str, servicer: MeddlingServicer, make_client: MakeClient
) -> None:
    labels, versions = publish(store, 9)
    client = make_client(address)
    client.fetch(labels[0])
    assert equal_bits(client.fetch(labels[8], labels[0]), versions[8])
    assert servicer.deltas_sent == client.counts.deltas == servicer._shelf.encoded == 1


def test_the_way_back_to_an_older_version_is_a_delta_too(
    store: SnapshotStore, address: str, make_client: MakeClient
) -> None:
    labels, versions = publish(store, 2)
    client = make_client(address)
    client.fetch(labels[1])
    assert equal_bits(client.fetch(labels[0], labels[1]), versions[0])
    assert client.counts.deltas == 1


def test_a_base_the_trainer_no_longer_has_means_a_full_copy(
    store: SnapshotStore, address: str, make_client: MakeClient
) -> None:
    store._keep = 2
    client = make_client(address)
    first = store.publish(0, make_weights(size=SIZE))
    client.fetch(first)
    labels, versions = publish(store, 4, first=1)
    store.publish(9, make_weights(9, SIZE))
    assert equal_bits(client.fetch(labels[3], first), versions[3])
    assert (client.counts.full_copies, client.counts.deltas, client.delta_fallbacks) == (2, 0, 0)


def test_a_base_the_client_no_longer_has_is_not_offered(
    store: SnapshotStore, address: str, servicer: MeddlingServicer, make_client: MakeClient
) -> None:
    labels, versions = publish(store, 3)
    client = make_client(address)
    client.fetch(labels[1])
    assert equal_bits(client.fetch(labels[2], labels[0]), versions[2])
    assert servicer.requests[-1].base_weights_sha256 == ""


def test_weights_that_changed_altogether_come_whole(
    store: SnapshotStore, address: str, servicer: MeddlingServicer, make_client: MakeClient
) -> None:
    torch.manual_seed(1)
    noise = [torch.randint(-(1 << 15), 1 << 15, (50_000,)).short() for _ in range(2)]
    versions = [{"a": bits.view(torch.bfloat16)} for bits in noise]
    labels = [store.publish(i, weights) for i, weights in enumerate(versions)]
    client = make_client(address)
    client.fetch(labels[0])
    assert equal_bits(client.fetch(labels[1], labels[0]), versions[1])
    assert (client.counts.full_copies, servicer.deltas_sent) == (2, 0)


def test_equal_weights_under_a_new_version_cost_next_to_nothing(
    store: SnapshotStore, address: str, make_client: MakeClient
) -> None:
    weights = make_weights(size=SIZE)
    labels = [store.publish(version, weights) for version in (0, 5)]
    client = make_client(address)
    client.fetch(labels[0])
    before = client.counts.payload_bytes
    assert equal_bits(client.fetch(labels[1], labels[0]), weights)
    assert client.counts.payload_bytes - before < 200


def test_a_model_of_another_layout_comes_whole(store: SnapshotStore, address: str, make_client: MakeClient) -> None:
    first = store.publish(0, make_weights(size=SIZE))
    other = make_weights(size=200_000)
    second = store.publish(1, other)
    client = make_client(address)
    client.fetch(first)
    assert equal_bits(client.fetch(second, first), other)
    assert client.counts.full_copies == 2


def test_a_byte_flipped_in_any_chunk_is_found_and_a_full_copy_fetched(
    store: SnapshotStore, address: str, servicer: MeddlingServicer, make_client: MakeClient
) -> None:
    first, second = make_weights(size=40_000), stepped(make_weights(size=40_000), 1, share=0.3)
    labels = [store.publish(0, first), store.publish(1, second)]
    client = make_client(address)
    client.fetch(labels[0])
    client.fetch(labels[1], labels[0])
    chunks = len(servicer._shelf._made.popitem()[1].result().data) // 1024 + 1  # type: ignore[union-attr]
    assert chunks > 5
    for flipped in range(1, chunks + 1):

        def meddle(number: int, message: Any, flipped: int = flipped) -> Any:
            if number == flipped:
                data = bytearray(message.data)
                data[len(data) // 2] ^= 0x10
                message.data = bytes(data)
            return message

        servicer.meddle = meddle
        client.fetch(labels[0])
        assert equal_bits(client.fetch(labels[1], labels[0]), second)
        assert client.delta_fallbacks == flipped
    assert client.counts.mismatches == chunks


def test_a_delta_cut_at_twenty_offsets_is_resumed_at_each(
    store: SnapshotStore, address: str, servicer: MeddlingServicer, make_client: MakeClient
) -> None:
    labels, versions = publish(store, 2)
    client = make_client(address)
    client.fetch(labels[0])
    cuts = [i * 1024 for i in range(20)]

    def cut(number: int, message: Any) -> Any:
        if number and cuts and message.offset_bytes == cuts[0]:
            del cuts[0]
            raise TrainerUnreachable("cut")
        return message

    servicer.meddle = cut
    assert equal_bits(client.fetch(labels[1], labels[0]), versions[1])
    # The first cut comes before anything arrived, so it is met at offset 0 again.
    assert [request.offset_bytes for request in servicer.requests[1:]] == [0] + [i * 1024 for i in range(20)]
    assert (client.counts.deltas, client.counts.resumes, client.counts.mismatches) == (1, 20, 0)
    assert servicer._shelf.encoded == 1


def test_connections_that_break_again_and_again_cost_no_byte_twice(
    store: SnapshotStore, address: str, servicer: MeddlingServicer, make_client: MakeClient
) -> None:
    versions = [make_weights(size=1_500_000)]
    versions.append(stepped(versions[0], 1, share=0.2))
    labels = [store.publish(i, weights) for i, weights in enumerate(versions)]
    with CuttingProxy(address) as proxy:
        client = make_client(proxy.address)
        client.fetch(labels[0])
        base_bytes = proxy.bytes_from_server
        client.fetch(labels[1], labels[0])
        piece = (proxy.bytes_from_server - base_bytes) // 21
    before = client.counts.payload_bytes
    with CuttingProxy(address, [base_bytes + piece, *[piece] * 19]) as proxy:
        client = make_client(proxy.address)
        client.fetch(labels[0])
        assert equal_bits(client.fetch(labels[1], labels[0]), versions[1])
        assert proxy.connections >= 15
    assert client.counts.payload_bytes == before
    assert (client.counts.deltas, client.counts.full_copies, client.counts.mismatches) == (1, 1, 0)


@pytest.mark.parametrize("keeps_base", [True, False])
def test_a_trainer_restarted_in_the_middle_of_a_delta(
    tmp_path: Path, store: SnapshotStore, make_client: MakeClient, keeps_base: bool
) -> None:
    labels, versions = publish(store, 2)
    before = MeddlingServicer(store)
    before.deltas_only = True
    half_way = threading.Event()
    server = GrpcServer()
    server.add(before.register, before.close)
    address = server.start()
    client = make_client(address)
    client.fetch(labels[0])
    again = SnapshotStore("r-1", tmp_path, (2,), 1024, incarnation=2, keep=3)
    if keeps_base:
        again.publish(0, versions[0])
    again.publish(1, versions[1])
    after = MeddlingServicer(again)
    fetched: list[Weights] = []

    def slowly(number: int, message: Any) -> Any:
        if number == 11:
            half_way.set()
        time.sleep(0.02)
        return message

    before.meddle = slowly
    thread = threading.Thread(target=lambda: fetched.append(client.fetch(labels[1], labels[0])))
    thread.start()
    assert half_way.wait(10)
    server.stop(grace_seconds=0)
    restarted = GrpcServer(port=int(address.rpartition(":")[2]))
    restarted.add(after.register, after.close)
    with restarted:
        thread.join(30)
    assert len(fetched) == 1
    assert equal_bits(fetched[0], versions[1])
    assert after.requests[0].offset_bytes > 0
    assert client.delta_fallbacks == (0 if keeps_base else 1)


def test_clients_that_ask_at_once_share_one_encoding_and_nobody_waits_for_it_but_them(
    store: SnapshotStore,
    address: str,
    servicer: MeddlingServicer,
    make_client: MakeClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    labels, versions = publish(store, 2)
    clients = [make_client(address) for _ in range(4)]
    for client in clients:
        client.fetch(labels[0])
    encode, go, began = shelf_module.encode_delta, threading.Event(), threading.Event()

    def slow(*args: Any) -> bytes:
        began.set()
        assert go.wait(20)
        return encode(*args)

    monkeypatch.setattr(shelf_module, "encode_delta", slow)
    results: list[Weights] = []
    threads = [threading.Thread(target=lambda c=c: results.append(c.fetch(labels[1], labels[0]))) for c in clients]
    for thread in threads:
        thread.start()
    assert began.wait(10)
    started = time.monotonic()
    for version in range(2, 6):
        store.publish(version, make_weights(version, size=1000))
    newest = store.current
    assert newest is not None
    assert len(make_client(address).fetch(newest.label)) == 4
    assert time.monotonic() - started < 10
    assert results == []
    go.set()
    for thread in threads:
        thread.join(30)
    assert len(results) == 4
    assert all(equal_bits(result, versions[1]) for result in results)
    assert servicer._shelf.encoded == 1


def test_a_reader_that_does_not_read_holds_nobody_up(
    store: SnapshotStore, address: str, make_client: MakeClient
) -> None:
    labels, versions = publish(store, 3)
    with dial(address) as channel:
        stub = checkpoint_pb2_grpc.CheckpointServiceStub(channel)
        request = checkpoint_pb2.FetchWeightsRequest(
            want=labels[1].to_proto(), base_weights_sha256=labels[0].weights_sha256
        )
        stuck = [stub.FetchWeights(request) for _ in range(3)]
        next(stuck[0])
        client = make_client(address)
        client.fetch(labels[1])
        started = time.monotonic()
        assert equal_bits(client.fetch(labels[2], labels[1]), versions[2])
        store.publish(3, make_weights(3, SIZE))
        assert time.monotonic() - started < 10
        for call in stuck:
            call.cancel()


def test_a_failing_encoder_means_a_full_copy(
    store: SnapshotStore, address: str, make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels, versions = publish(store, 2)
    client = make_client(address)
    client.fetch(labels[0])

    def fails(*_: Any) -> bytes:
        raise MemoryError

    monkeypatch.setattr(shelf_module, "encode_delta", fails)
    assert equal_bits(client.fetch(labels[1], labels[0]), versions[1])
    assert client.counts.full_copies == 2


def test_whoever_changes_fetched_tensors_pays_with_a_full_copy(
    store: SnapshotStore, address: str, make_client: MakeClient
) -> None:
    labels, versions = publish(store, 2)
    client = make_client(address)
    client.fetch(labels[0])["d.weight"][7] = 100.0
    assert equal_bits(client.fetch(labels[1], labels[0]), versions[1])
    assert (client.delta_fallbacks, client.counts.full_copies) == (1, 2)
