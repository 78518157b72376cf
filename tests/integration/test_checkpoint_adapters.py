"""LoRA runs over real sockets: workers hold the base and get the adapter alone, unless that is longer or of no use."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tersely.errors import TrainerUnreachable
from tersely.testing.channel import MeddlingServicer, connected, hash_of, next_version, served
from tersely.types import WeightsLabel
from tersely.v1.checkpoint_pb2 import FetchWeightsResponse
from tersely.weights import adapter as adapter_module
from tersely.weights.adapter import AdapterLayer, merge_into
from tersely.weights.client import WeightsClient
from tersely.weights.shelf import DeltaShelf
from tersely.weights.store import SnapshotStore

OUTPUTS, INPUTS = 400, 300
CHUNK = 256


class AdapterRun:
    """Publishes versions of one adapted matrix beside an embedding that stays."""

    def __init__(self, folder: Path) -> None:
        self.store = SnapshotStore("r-1", folder, (2,), CHUNK, incarnation=1, keep=3)
        self.servicer = MeddlingServicer(self.store, DeltaShelf(self.store, threads=1))
        generator = torch.Generator().manual_seed(0)
        self.base = torch.randn(OUTPUTS, INPUTS, generator=generator).bfloat16()
        self.embedding = torch.randn(OUTPUTS, 2 * INPUTS, generator=generator).bfloat16()

    def publish(self, version: int, *, rank: int = 2, size: float = 0.01) -> WeightsLabel:
        generator = torch.Generator().manual_seed(version)
        down = torch.randn(rank, INPUTS, generator=generator)
        up = torch.randn(OUTPUTS, rank, generator=generator) * size * bool(version)
        weight = torch.empty_like(self.base)
        merge_into(weight, self.base, down, up, 2.0)
        layer = AdapterLayer("b.weight", down, up, 2.0)
        snapshot = self.store.prepare(version, {"a.embed": self.embedding, "b.weight": weight}, adapter=[layer])
        if version == 0:
            self.store.keep_adapter_base(snapshot)
        return self.store.announce(snapshot)


@pytest.fixture
def run(tmp_path: Path) -> AdapterRun:
    return AdapterRun(tmp_path)


@pytest.fixture
def client(run: AdapterRun) -> Iterator[WeightsClient]:
    with served(run.servicer) as address, connected(address) as client:
        yield client


def follow(client: WeightsClient, label: WeightsLabel, held: WeightsLabel | None = None) -> None:
    """Fetches a version once it is announced."""
    assert hash_of(next_version(client, label, held)) == label.weights_sha256


def test_after_the_base_only_adapters_come(run: AdapterRun, client: WeightsClient) -> None:
    held = run.publish(0)
    follow(client, held)
    whole = client.counts.payload_bytes
    for version in range(1, 5):
        label = run.publish(version)
        follow(client, label, held)
        held = label
        manifest = client.manifest(label)
        assert manifest is not None
        assert WeightsLabel.from_proto(manifest.weights) == label
    assert (client.counts.full_copies, client.counts.adapters, client.counts.deltas) == (1, 4, 0)
    assert client.counts.payload_bytes - whole == 4 * 2 * (OUTPUTS + INPUTS) * 4


def test_whoever_joins_late_fetches_the_base_once_although_it_is_long_gone_from_the_newest(
    run: AdapterRun, client: WeightsClient
) -> None:
    for version in range(7):
        label = run.publish(version)
    follow(client, label)
    assert (client.counts.full_copies, client.counts.adapters) == (1, 1)


def test_an_adapter_cut_at_twenty_offsets_is_resumed_at_each(run: AdapterRun, client: WeightsClient) -> None:
    first = run.publish(0)
    follow(client, first)
    label = run.publish(1)
    cuts = [CHUNK * i for i in range(1, 21)]

    def cut(number: int, message: FetchWeightsResponse) -> FetchWeightsResponse:
        if number and cuts and message.offset_bytes == cuts[0]:
            del cuts[0]
            raise TrainerUnreachable("cut")
        return message

    run.servicer.meddle = cut
    follow(client, label, first)
    assert (client.counts.adapters, client.counts.mismatches, client.counts.resumes) == (1, 0, 20)


def rough(target: torch.Tensor, base: torch.Tensor, down: torch.Tensor, up: torch.Tensor, scale: float) -> None:
    """Another way to merge, with another result."""
    target.copy_((base.float() + scale * (up.bfloat16() @ down.bfloat16()).float()).bfloat16())


def test_a_machine_that_always_merges_otherwise_asks_for_no_adapter_after_the_third(
    run: AdapterRun, client: WeightsClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = run.publish(0)
    follow(client, held)
    monkeypatch.setattr(adapter_module, "merge_into", rough)
    for version in range(1, 6):
        label = run.publish(version)
        follow(client, label, held)
        held = label
    assert (client.counts.adapters, client.counts.adapter_fallbacks, client.counts.deltas) == (0, 3, 5)
    assert client.counts.full_copies == 1
    asked = [request.accepts_adapter for request in run.servicer.requests]
    assert asked == [False, True, False, True, False, True, False, False, False]


def test_one_wrong_merge_changes_nothing_for_the_next_versions(
    run: AdapterRun, client: WeightsClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = run.publish(0)
    follow(client, held)
    for version in range(1, 9):
        label = run.publish(version)
        with monkeypatch.context() as here:
            if version % 2:
                here.setattr(adapter_module, "merge_into", rough)
            follow(client, label, held)
        held = label
    assert (client.counts.adapters, client.counts.adapter_fallbacks, client.counts.deltas) == (4, 4, 4)
    assert client.counts.full_copies == 1


def test_a_byte_flipped_in_any_chunk_of_an_adapter_costs_that_adapter_alone(
    run: AdapterRun, client: WeightsClient
) -> None:
    held = run.publish(0)
    follow(client, held)
    chunks = 2 * (OUTPUTS + INPUTS) * 4 // CHUNK + 1
    for version in range(1, chunks + 1):
        left = [version]

        def flip(number: int, message: FetchWeightsResponse, left: list[int] = left) -> FetchWeightsResponse:
            if number in left:
                left.clear()
                data = bytearray(message.data)
                data[len(data) * 2 // 3] ^= 1
                message.data = bytes(data)
            return message

        run.servicer.meddle = flip
        label = run.publish(version)
        follow(client, label, held)
        held = label
        assert not left
    assert (client.counts.adapters, client.counts.adapter_fallbacks) == (chunks, chunks)
    assert (client.counts.deltas, client.counts.full_copies) == (0, 1)


def test_the_base_of_a_trainer_that_began_anew_is_fetched_once(run: AdapterRun, client: WeightsClient) -> None:
    held = run.publish(0)
    follow(client, held)
    follow(client, run.publish(1), held)
    run.base = run.base + 1
    held = run.publish(0)  # another base from here on
    for version in range(2, 5):
        label = run.publish(version)
        follow(client, label, held)
        held = label
    assert (client.counts.full_copies, client.counts.adapters) == (2, 4)


def test_a_delta_is_sent_where_it_is_shorter(run: AdapterRun, client: WeightsClient) -> None:
    first = run.publish(0)
    follow(client, first)
    # An adapter of high rank that changes next to nothing.
    follow(client, run.publish(1, rank=100, size=1e-7), first)
    assert (client.counts.adapters, client.counts.deltas) == (0, 1)


def test_one_that_does_not_merge_gets_deltas(run: AdapterRun, client: WeightsClient) -> None:
    labels = [run.publish(version) for version in (0, 1)]
    assert client.wait_for_version(20) is not None
    client.fetch_held(labels[0])
    assert client.fetch_held(labels[1], labels[0]).label == labels[1]
    assert (client.counts.adapters, client.counts.deltas) == (0, 1)
