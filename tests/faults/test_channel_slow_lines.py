"""Copies that take long: over a slow line, over one that breaks, and many at once, while the trainer goes on."""

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from tersely.errors import TrainerUnreachable, WeightsUnavailable
from tersely.testing.channel import MeddlingServicer, connected, hash_of, make_weights, served
from tersely.types import WeightsLabel
from tersely.v1.checkpoint_pb2 import FetchWeightsRequest, FetchWeightsResponse
from tersely.weights.client import RetryPolicy
from tersely.weights.readers import Readers
from tersely.weights.snapshot import Snapshot
from tersely.weights.store import SnapshotStore

CHUNK = 2048
IMPATIENT = RetryPolicy(attempts=3, first_pause_seconds=0.01, longest_pause_seconds=0.02, stall_seconds=0.6)


@pytest.fixture
def store(tmp_path: Path) -> SnapshotStore:
    return SnapshotStore("r-1", tmp_path, (2,), CHUNK, incarnation=1, keep=2)


def publish(store: SnapshotStore, first: int, count: int) -> list[WeightsLabel]:
    return [store.publish(version, make_weights(version)) for version in range(first, first + count)]


class Slow(MeddlingServicer):
    """Waits before each message, without holding up the others."""

    seconds = 0.0
    hang_at = -1

    async def FetchWeights(  # noqa: N802 - gRPC's name
        self, request: FetchWeightsRequest, context: Any
    ) -> AsyncIterator[FetchWeightsResponse]:
        number = 0
        async for message in super().FetchWeights(request, context):
            if number == self.hang_at:
                self.hang_at = -1
                await asyncio.sleep(60)
            await asyncio.sleep(self.seconds)
            yield message
            number += 1


def test_a_copy_over_a_slow_line_lasts_as_long_as_it_gets_on(store: SnapshotStore) -> None:
    servicer = Slow(store)
    servicer.seconds = 0.05
    (label,) = publish(store, 0, 1)
    begun = threading.Event()

    def tell(number: int, message: FetchWeightsResponse) -> FetchWeightsResponse:
        if number == 3:
            begun.set()
        return message

    servicer.meddle = tell
    with served(servicer) as address, connected(address, IMPATIENT) as client:
        later = threading.Thread(target=lambda: begun.wait(30) and publish(store, 1, 5))
        later.start()
        assert hash_of(client.fetch(label)) == label.weights_sha256
        later.join()
        assert len(servicer.requests) == 1
        assert client.counts.resumes == 0


def test_a_stream_that_hangs_is_left_and_taken_up_again(store: SnapshotStore) -> None:
    servicer = Slow(store)
    servicer.hang_at = 6
    (label,) = publish(store, 0, 1)
    with served(servicer) as address, connected(address, IMPATIENT) as client:
        assert hash_of(client.fetch(label)) == label.weights_sha256
        assert [request.offset_bytes for request in servicer.requests] == [0, 5 * CHUNK]


def test_a_version_dropped_after_its_reader_broke_is_resumed(store: SnapshotStore) -> None:
    servicer = MeddlingServicer(store)
    (label,) = publish(store, 0, 1)

    def cut(number: int, message: FetchWeightsResponse) -> FetchWeightsResponse:
        if number == 7 and len(servicer.requests) == 1:
            publish(store, 1, 4)
            raise TrainerUnreachable("cut")
        return message

    servicer.meddle = cut
    with served(servicer) as address, connected(address) as client:
        assert hash_of(client.fetch(label)) == label.weights_sha256
        assert client.counts.payload_bytes == len(make_bytes(store, label))
        assert [request.offset_bytes for request in servicer.requests] == [0, 6 * CHUNK]
        with pytest.raises(WeightsUnavailable):
            client.fetch(label)


def make_bytes(store: SnapshotStore, label: WeightsLabel) -> memoryview:
    snapshot = store.prepare(label.policy_version, make_weights(label.policy_version))
    assert snapshot.label == label
    return snapshot.payload


def test_a_version_kept_for_a_broken_reader_is_forgotten_in_time(store: SnapshotStore) -> None:
    (label,) = publish(store, 0, 1)

    async def broken_then_late() -> tuple[Snapshot | None, Snapshot | None]:
        readers = Readers(store.holds, resumable_seconds=0.05)
        context: Any = Context()
        with pytest.raises(asyncio.CancelledError), readers.reading("a", store.get(label), context):
            raise asyncio.CancelledError
        kept = readers.find("a", label)
        assert readers.find("b", label) is None
        await asyncio.sleep(0.2)
        return kept, readers.find("a", label)

    assert asyncio.run(broken_then_late()) == (store.get(label), None)


class Context:
    """Of a call that can be ended and nothing else."""

    async def abort(self, code: grpc.StatusCode, details: str) -> None:
        raise grpc.aio.AbortError


async def read(readers: Readers, node_id: str, snapshot: Snapshot, chunks: int, done: list[str]) -> None:
    with readers.reading(node_id, snapshot, Context()) as moved:  # type: ignore[arg-type]
        for _ in range(chunks):
            moved()
            await asyncio.sleep(0.002)
    done.append(node_id)


def test_readers_that_join_one_after_the_other_do_not_keep_each_other_from_finishing(store: SnapshotStore) -> None:
    async def join(count: int) -> list[str]:
        readers, done = Readers(store.holds), list[str]()
        tasks = []
        for version in range(count):
            (label,) = publish(store, version, 1)
            # As long as ten versions take.
            tasks.append(asyncio.create_task(read(readers, str(version), store.get(label), 20, done)))
            await asyncio.sleep(0.004)
        await asyncio.gather(*tasks, return_exceptions=True)
        return done

    done = asyncio.run(join(20))
    assert done[:2] == ["0", "1"]
    assert len(done) >= 5


def test_a_reader_that_stalls_makes_room_for_one_that_reads(store: SnapshotStore) -> None:
    labels = publish(store, 0, 2)
    snapshots = [store.get(label) for label in labels]

    async def stall_and_join() -> list[str]:
        readers, done = Readers(store.holds, stall_seconds=0.4, most_dropped=1), list[str]()

        async def stall() -> None:
            with readers.reading("stalls", snapshots[0], Context()) as moved:  # type: ignore[arg-type]
                moved()
                await asyncio.sleep(60)

        stalled = asyncio.create_task(stall())
        await asyncio.sleep(0.15)
        publish(store, 2, 2)
        await read(readers, "reads", snapshots[1], 5, done)
        assert readers.ended == 1
        await asyncio.gather(stalled, return_exceptions=True)
        return done

    assert asyncio.run(stall_and_join()) == ["reads"]
