"""The checkpoint channel over real sockets: resuming, checking, watching."""

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from tersely.errors import ModelInvalid, TrainerUnreachable, WeightsMismatch, WeightsUnavailable
from tersely.rpc.server import GrpcServer
from tersely.testing.channel import MeddlingServicer, connected, equal_bits, served
from tersely.testing.proxy import CuttingProxy
from tersely.types import PolicyVersion, WeightsLabel
from tersely.weights.client import RetryPolicy, WeightsClient
from tersely.weights.digest import details_sha256
from tersely.weights.servicer import CheckpointServicer
from tersely.weights.store import SnapshotStore

MIB = 1 << 20
QUICK = RetryPolicy(attempts=3, first_pause_seconds=0.01, longest_pause_seconds=0.05, stall_seconds=20)


def make_tensors(seed: int, mib: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        "b.weight": torch.randn(3, 5, generator=generator).bfloat16(),
        "a.bias": torch.randn(4, generator=generator),
        "c.scale": torch.tensor(0.5),
        "d.empty": torch.zeros(0, 7),
    }
    for i in range(mib):
        tensors[f"e.{i}"] = torch.randn(512, 1024, generator=generator).bfloat16()
    return tensors


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer.json").write_bytes(b"x" * (2 * MIB + 17))
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "modeling_evil.py").write_text("raise SystemExit")
    return folder


@pytest.fixture
def store(model_folder: Path) -> SnapshotStore:
    return SnapshotStore("r-1", model_folder, (2, 5), 256 << 10, incarnation=1, keep=2)


@pytest.fixture
def address(store: SnapshotStore) -> Iterator[str]:
    with served(CheckpointServicer(store)) as address:
        yield address


MakeClient = Callable[..., WeightsClient]


@pytest.fixture
def make_client() -> Iterator[MakeClient]:
    with ExitStack() as stack:
        yield lambda address, run_id="r-1": stack.enter_context(connected(address, QUICK, run_id))


def corrupt(store: SnapshotStore, label: WeightsLabel, at: int) -> None:
    snapshot = store._held[label]
    payload = bytearray(snapshot.payload)
    payload[at] ^= 1
    store._held[label] = dataclasses.replace(snapshot, payload=memoryview(payload))


def test_fetched_weights_equal_the_published_ones(store: SnapshotStore, address: str, make_client: MakeClient) -> None:
    tensors = make_tensors(0, mib=2)
    label = store.publish(0, tensors)
    fetched = make_client(address).fetch(label)
    assert equal_bits(fetched, tensors)
    fetched["e.0"].add_(1)


def test_cut_connections_are_resumed_where_they_broke(store: SnapshotStore, make_client: MakeClient) -> None:
    tensors = make_tensors(0, mib=8)
    label = store.publish(0, tensors)
    servicer = MeddlingServicer(store)
    with served(servicer) as address, CuttingProxy(address, [3 * MIB, 3 * MIB]) as proxy:
        client = make_client(proxy.address)
        assert equal_bits(client.fetch(label), tensors)
        assert proxy.connections == 3
    assert client.counts.resumes == 2
    asked_from = [request.offset_bytes for request in servicer.requests]
    assert asked_from[0] == 0
    # What a connection had brought but not yet delivered may be lost with it, on a busy machine even all of it.
    assert asked_from == sorted(asked_from)
    assert asked_from[-1] > 0
    # No byte that had arrived was asked for again.
    assert client.counts.payload_bytes == store.get(label).manifest.payload_bytes


def test_a_stream_that_never_gets_further_is_given_up(
    store: SnapshotStore, address: str, make_client: MakeClient
) -> None:
    label = store.publish(0, make_tensors(0, mib=1))
    with CuttingProxy(address, [20_000] * 50) as proxy, pytest.raises(TrainerUnreachable):
        make_client(proxy.address).fetch(label)


def test_a_corrupted_byte_is_a_mismatch_after_one_more_try(
    store: SnapshotStore, address: str, make_client: MakeClient
) -> None:
    label = store.publish(0, make_tensors(0, mib=2))
    corrupt(store, label, at=MIB)
    client = make_client(address)
    with pytest.raises(WeightsMismatch, match=r"Tensor e\.0"):
        client.fetch(label)
    assert client.counts.mismatches == 2


def test_a_byte_corrupted_once_is_fetched_again(
    store: SnapshotStore, address: str, make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = make_tensors(0, mib=1)
    label = store.publish(0, tensors)
    good, seen = store._held[label], []
    find = SnapshotStore._find

    def first_bad(self: SnapshotStore, wanted: WeightsLabel) -> object:
        found = find(self, wanted)
        seen.append(wanted)
        if len(seen) == 1:
            return dataclasses.replace(good, payload=memoryview(bytes(len(good.payload))))
        return found

    monkeypatch.setattr(SnapshotStore, "_find", first_bad)
    client = make_client(address)
    assert equal_bits(client.fetch(label), tensors)
    assert client.counts.mismatches == 1


def test_a_manifest_whose_hashes_do_not_make_the_label_is_refused(
    store: SnapshotStore, address: str, make_client: MakeClient
) -> None:
    label = store.publish(0, make_tensors(0))
    store.get(label).manifest.tensors[0].sha256 = "0" * 64
    with pytest.raises(WeightsMismatch, match="add up"):
        make_client(address).fetch(label)


@pytest.mark.parametrize("change", ["hash", "version"])
def test_a_label_the_trainer_does_not_hold_is_unavailable(
    store: SnapshotStore, address: str, make_client: MakeClient, change: str
) -> None:
    label = store.publish(3, make_tensors(0))
    wrong = (
        WeightsLabel(PolicyVersion(3), "f" * 64)
        if change == "hash"
        else WeightsLabel(PolicyVersion(4), label.weights_sha256)
    )
    with pytest.raises(WeightsUnavailable, match="does not hold") as caught:
        make_client(address).fetch(wrong)
    assert caught.value.way_out


def test_an_older_pinned_version_is_fetched_by_a_worker_that_never_saw_its_manifest(
    store: SnapshotStore, address: str, make_client: MakeClient
) -> None:
    tensors = make_tensors(0)
    first = store.publish(0, tensors)
    store.pin(first)
    for version in range(1, 5):
        store.publish(version, make_tensors(version))
    assert equal_bits(make_client(address).fetch(first), tensors)
    store.unpin(first)
    with pytest.raises(WeightsUnavailable):
        make_client(address).fetch(first)


def test_a_watcher_gets_the_current_version_at_once_and_then_newer_ones(
    store: SnapshotStore, address: str, make_client: MakeClient
) -> None:
    first = store.publish(0, make_tensors(0))
    client = make_client(address)
    seen = client.wait_for_version(10)
    assert seen is not None
    assert WeightsLabel.from_proto(seen.weights) == first
    assert list(seen.stop_token_ids) == [2, 5]
    assert client.wait_for_version(0.1, other_than=first) is None
    second = store.publish(1, make_tensors(1))
    seen = client.wait_for_version(10, other_than=first)
    assert seen is not None
    assert WeightsLabel.from_proto(seen.weights) == second


def test_a_watcher_waits_for_the_first_version(store: SnapshotStore, address: str, make_client: MakeClient) -> None:
    client = make_client(address)
    client.start_watching()
    assert client.wait_for_version(0.2) is None
    store.publish(0, make_tensors(0))
    assert client.wait_for_version(10) is not None


def test_a_watcher_that_comes_back_gets_the_newest_and_publishing_is_never_held_up(
    store: SnapshotStore, address: str, make_client: MakeClient
) -> None:
    client = make_client(address)
    client.start_watching()
    started = time.monotonic()
    labels = [store.publish(version, make_tensors(version)) for version in range(30)]
    assert time.monotonic() - started < 10
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        latest = client.latest
        if latest is not None and WeightsLabel.from_proto(latest.weights) == labels[-1]:
            break
        time.sleep(0.01)
    assert client.latest is not None
    assert client.latest.weights.policy_version == 29


def test_a_watch_outlives_a_restart_of_the_trainer(
    store: SnapshotStore, model_folder: Path, make_client: MakeClient
) -> None:
    first = CheckpointServicer(store)
    server = GrpcServer()
    server.add(first.register, first.close)
    address = server.start()
    label = store.publish(4, make_tensors(0))
    client = make_client(address)
    assert client.wait_for_version(10) is not None
    server.stop()
    again = SnapshotStore("r-1", model_folder, (2, 5), 256 << 10, incarnation=2)
    newer = again.publish(3, make_tensors(1))
    second = CheckpointServicer(again)
    server = GrpcServer(port=int(address.rpartition(":")[2]))
    server.add(second.register, second.close)
    server.start()
    try:
        seen = client.wait_for_version(20, other_than=label)
        assert seen is not None
        assert WeightsLabel.from_proto(seen.weights) == newer
        assert seen.trainer_incarnation == 2
    finally:
        server.stop()


def test_a_trainer_of_another_run_is_refused(store: SnapshotStore, address: str, make_client: MakeClient) -> None:
    store.publish(0, make_tensors(0))
    with pytest.raises(WeightsUnavailable, match="serves run r-1, not r-2"):
        make_client(address, run_id="r-2").wait_for_version(10)


def test_close_calls_off_a_wait(address: str, make_client: MakeClient) -> None:
    client = make_client(address)
    timer = threading.Timer(0.3, client.close)
    timer.start()
    started = time.monotonic()
    assert client.wait_for_version(60) is None
    assert time.monotonic() - started < 20
    timer.join()


def test_model_files_arrive_whole_and_no_others(
    store: SnapshotStore, address: str, model_folder: Path, make_client: MakeClient, tmp_path: Path
) -> None:
    store.publish(0, make_tensors(0))
    into = make_client(address).fetch_model_folder(tmp_path / "cache" / "model")
    assert sorted(path.name for path in into.iterdir()) == ["config.json", "tokenizer.json"]
    for path in into.iterdir():
        assert path.read_bytes() == (model_folder / path.name).read_bytes()


def test_a_damaged_model_file_in_the_cache_is_fetched_again(
    store: SnapshotStore, address: str, make_client: MakeClient, tmp_path: Path
) -> None:
    store.publish(0, make_tensors(0))
    (tmp_path / "config.json").write_text("{")
    make_client(address).fetch_model_folder(tmp_path)
    assert (tmp_path / "config.json").read_text() == '{"model_type": "llama"}'


@pytest.mark.parametrize("name", ["../config.json", "sub/config.json", "..", "/etc/passwd", "modeling.py", ""])
def test_a_model_file_that_could_leave_its_folder_is_refused(
    store: SnapshotStore, address: str, make_client: MakeClient, tmp_path: Path, name: str
) -> None:
    label = store.publish(0, make_tensors(0))
    manifest = store.get(label).manifest
    manifest.model_files.add(name=name, length_bytes=1, sha256="0" * 64)
    manifest.details_sha256 = details_sha256(manifest)
    with pytest.raises(ModelInvalid):
        make_client(address).fetch_model_folder(tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
