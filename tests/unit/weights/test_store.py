import threading
from pathlib import Path

import pytest
import torch

from tersely.errors import WeightsUnavailable
from tersely.types import WeightsLabel
from tersely.weights.store import SnapshotStore


@pytest.fixture
def store(tmp_path: Path) -> SnapshotStore:
    return SnapshotStore("r-1", tmp_path, (2,), 1024, incarnation=7, keep=2)


def publish(store: SnapshotStore, version: int) -> WeightsLabel:
    return store.publish(version, {"a": torch.full((4,), float(version))})


def held(store: SnapshotStore, labels: list[WeightsLabel]) -> list[int]:
    found = []
    for label in labels:
        try:
            found.append(store.get(label).manifest.weights.policy_version)
        except WeightsUnavailable:
            continue
    return found


def test_nothing_is_current_before_the_first_version(store: SnapshotStore) -> None:
    assert store.current is None


def test_the_newest_are_kept(store: SnapshotStore) -> None:
    labels = [publish(store, version) for version in range(4)]
    assert held(store, labels) == [2, 3]
    assert store.current is not None
    assert store.current.label == labels[3]
    assert store.current.manifest.trainer_incarnation == 7


def test_a_pinned_version_stays_until_its_last_pin_goes(store: SnapshotStore) -> None:
    first = publish(store, 0)
    store.pin(first)
    store.pin(first)
    labels = [first] + [publish(store, version) for version in range(1, 4)]
    assert held(store, labels) == [0, 2, 3]
    store.unpin(first)
    assert held(store, labels) == [0, 2, 3]
    store.unpin(first)
    assert held(store, labels) == [2, 3]
    store.unpin(first)


def test_what_is_not_held_can_not_be_pinned(store: SnapshotStore) -> None:
    label = publish(store, 0)
    with pytest.raises(WeightsUnavailable, match="v0"):
        store.pin(WeightsLabel(label.policy_version, "0" * 64))


def test_publishing_a_version_again_makes_it_current_and_is_held_once(store: SnapshotStore) -> None:
    labels = [publish(store, 0), publish(store, 1), publish(store, 0)]
    assert labels[0] == labels[2]
    assert store.current is not None
    assert store.current.label == labels[0]
    assert held(store, labels[:2]) == [0, 1]


def test_a_subscriber_hears_of_versions_until_it_leaves(store: SnapshotStore) -> None:
    calls: list[int] = []
    unsubscribe = store.subscribe(lambda: calls.append(1))
    publish(store, 0)
    unsubscribe()
    publish(store, 1)
    unsubscribe()
    assert calls == [1]


def test_threads_may_publish_pin_and_read_at_once(store: SnapshotStore) -> None:
    errors: list[BaseException] = []

    def work(first: int) -> None:
        try:
            for version in range(first, first + 20):
                label = publish(store, version)
                try:
                    store.pin(label)
                except WeightsUnavailable:
                    continue
                assert store.get(label).label == label
                store.unpin(label)
        except BaseException as error:  # noqa: BLE001 - shown by the main thread
            errors.append(error)

    threads = [threading.Thread(target=work, args=(start,)) for start in (0, 100, 200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(store._held) == 2


def test_chunks_that_grpc_would_refuse_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="chunk_bytes"):
        SnapshotStore("r-1", tmp_path, (2,), 4 << 20, incarnation=1)


def test_fewer_are_kept_where_they_would_take_too_many_bytes(tmp_path: Path) -> None:
    store = SnapshotStore("r-1", tmp_path, (2,), 1024, incarnation=7, keep=5, keep_bytes=40)
    labels = [publish(store, version) for version in range(4)]
    assert held(store, labels) == [2, 3]
    store.pin(labels[2])
    labels.append(store.publish(4, {"a": torch.zeros(100)}))
    assert held(store, labels) == [2, 4]


def test_weights_are_found_by_their_hash_whatever_the_version(store: SnapshotStore) -> None:
    weights = {"a": torch.ones(4)}
    labels = [store.publish(version, weights) for version in (3, 8)]
    found = store.find(labels[0].weights_sha256)
    assert found is not None
    assert found.label == labels[1]
    assert store.find("0" * 64) is None
