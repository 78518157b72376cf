import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tersely.types import WeightsLabel
from tersely.weights import shelf as shelf_module
from tersely.weights.delta import decode_delta
from tersely.weights.shelf import Delta, DeltaShelf
from tersely.weights.store import SnapshotStore


@pytest.fixture
def store(tmp_path: Path) -> SnapshotStore:
    return SnapshotStore("r-1", tmp_path, (2,), 1024, incarnation=7, keep=6)


@pytest.fixture
def shelf(store: SnapshotStore) -> Iterator[DeltaShelf]:
    shelf = DeltaShelf(store, most_bytes=3000, threads=1)
    yield shelf
    shelf.close()


def publish(store: SnapshotStore, count: int) -> list[WeightsLabel]:
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(10_000, generator=generator).bfloat16()
    labels = []
    for version in range(count):
        labels.append(store.publish(version, {"a": weights}))
        bits = weights.view(torch.int16) + (torch.rand(10_000, generator=generator) < 0.1).to(torch.int16)
        weights = bits.view(torch.bfloat16)
    return labels


def get(shelf: DeltaShelf, store: SnapshotStore, base: WeightsLabel, want: WeightsLabel) -> Delta | None:
    return asyncio.run(shelf.get(base.weights_sha256, store.get(want)))


def test_a_delta_is_made_once_and_outlives_its_base(shelf: DeltaShelf, store: SnapshotStore) -> None:
    labels = publish(store, 2)
    base = bytes(store.get(labels[0]).payload)
    first = get(shelf, store, *labels)
    del store._held[labels[0]]
    assert get(shelf, store, *labels) is first
    assert first is not None
    want = store.get(labels[1])
    assert decode_delta(want.manifest, memoryview(base), first.data) == want.payload
    assert shelf.encoded == 1


def test_what_is_not_held_has_no_delta(shelf: DeltaShelf, store: SnapshotStore) -> None:
    labels = publish(store, 2)
    del store._held[labels[0]]
    assert get(shelf, store, *labels) is None


def test_deltas_asked_for_longest_ago_are_forgotten(shelf: DeltaShelf, store: SnapshotStore) -> None:
    labels = publish(store, 6)
    for base in labels[:5]:
        made = get(shelf, store, base, labels[5])
        assert made is not None
        kept = sum(len(delta.data) for future in shelf._made.values() if (delta := future.result()) is not None)
        assert kept <= 3000 or len(shelf._made) == 1
    assert get(shelf, store, labels[4], labels[5]) is made
    get(shelf, store, labels[0], labels[5])
    assert shelf.encoded == 6


def test_a_delta_no_shorter_than_a_full_copy_is_not_sent_nor_made_twice(
    shelf: DeltaShelf, store: SnapshotStore
) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = [
        store.publish(
            i, {"a": torch.randint(-(1 << 15), 1 << 15, (999,), generator=generator).short().view(torch.bfloat16)}
        )
        for i in range(2)
    ]
    assert [get(shelf, store, *labels) for _ in range(2)] == [None, None]
    assert shelf.encoded == 1


def test_a_reader_that_leaves_does_not_take_the_encoding_with_it(shelf: DeltaShelf, store: SnapshotStore) -> None:
    labels = publish(store, 2)

    async def two() -> Delta | None:
        want = store.get(labels[1])
        leaving = asyncio.create_task(shelf.get(labels[0].weights_sha256, want))
        staying = asyncio.create_task(shelf.get(labels[0].weights_sha256, want))
        await asyncio.sleep(0)
        leaving.cancel()
        return await staying

    assert asyncio.run(two()) is not None
    assert shelf.encoded == 1


def test_after_closing_full_copies_are_sent(shelf: DeltaShelf, store: SnapshotStore) -> None:
    labels = publish(store, 2)
    shelf.close()
    assert get(shelf, store, *labels) is None


def test_deltas_that_wait_hold_no_payloads_and_what_was_dropped_meanwhile_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SnapshotStore("r-1", tmp_path, (2,), 1024, incarnation=7, keep=2)
    shelf = DeltaShelf(store, threads=1)
    begun, go_on = threading.Event(), threading.Event()
    encode = shelf_module.encode_delta

    def slowly(*args: object) -> bytes:
        begun.set()
        assert go_on.wait(60)
        return encode(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(shelf_module, "encode_delta", slowly)

    async def ask_for_each() -> list[Delta | None]:
        asked = []
        label = publish(store, 1)[0]
        for version in range(1, 21):
            base, label = label, store.publish(version, {"a": torch.full((10_000,), float(version)).bfloat16()})
            asked.append(asyncio.create_task(shelf.get(base.weights_sha256, store.get(label))))
            await asyncio.sleep(0)
            assert begun.wait(60)
        go_on.set()
        return await asyncio.gather(*asked)

    made = asyncio.run(ask_for_each())
    # The first had begun; of the rest only the last still has both of its versions.
    assert [delta is not None for delta in made] == [True, *[False] * 18, True]
    shelf.close()


def test_what_nobody_waits_for_any_more_is_not_made(
    shelf: DeltaShelf, store: SnapshotStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = publish(store, 6)
    begun, go_on = threading.Event(), threading.Event()
    encode = shelf_module.encode_delta

    def slowly(*args: object) -> bytes:
        begun.set()
        assert go_on.wait(60)
        return encode(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(shelf_module, "encode_delta", slowly)

    async def leave() -> None:
        want = store.get(labels[5])
        tasks = [asyncio.create_task(shelf.get(base.weights_sha256, want)) for base in labels[:5]]
        await asyncio.sleep(0)
        assert begun.wait(60)
        for task in tasks[1:]:
            task.cancel()
        await asyncio.gather(*tasks[1:], return_exceptions=True)
        assert len(shelf._made) == 1
        go_on.set()
        assert await tasks[0] is not None

    asyncio.run(leave())
    assert shelf.encoded == 1
    assert not shelf._waiting
