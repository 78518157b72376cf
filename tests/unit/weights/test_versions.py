"""Versions on disk are what was published, or are refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tersely.errors import CheckpointInvalid, TrainerUnreachable
from tersely.rpc.server import GrpcServer
from tersely.types import PolicyVersion, WeightsLabel
from tersely.weights.measure import measure
from tersely.weights.record import record_versions
from tersely.weights.servicer import CheckpointServicer
from tersely.weights.store import SnapshotStore
from tersely.weights.versions import find_versions, origin_of, read_version, write_version


def _weights(number: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    large = torch.randn(200, 100, generator=generator)
    large[number] += 1
    return {"a": large.bfloat16(), "b": torch.ones(7)}


@pytest.fixture
def store(tmp_path: Path) -> SnapshotStore:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return SnapshotStore("r", folder, (0,), 1 << 10, incarnation=1, keep=4)


@pytest.fixture
def address(store: SnapshotStore) -> Iterator[str]:
    servicer = CheckpointServicer(store)
    server = GrpcServer()
    server.add(servicer.register, servicer.close)
    yield server.start()
    server.stop()


def test_a_run_is_recorded_version_by_version(store: SnapshotStore, address: str, tmp_path: Path) -> None:
    out = tmp_path / "versions"
    out.mkdir()
    labels = [store.publish(0, _weights(0))]

    def next_one(_: str) -> None:
        if len(labels) < 3:
            labels.append(store.publish(len(labels), _weights(len(labels))))

    counts = record_versions(address, "r", out, 2, alive=lambda: True, progress=next_one)
    assert [read_version(path).label for path in find_versions(out)] == labels
    assert counts.deltas == 2
    (found,) = measure(out, 1).values()
    assert [(pair["from_step"], pair["to_step"]) for pair in found["pairs"]] == [(0, 1), (1, 2)]
    assert found["bit_exact"]


def test_a_run_that_ends_early_is_an_error(store: SnapshotStore, address: str, tmp_path: Path) -> None:
    store.publish(0, _weights(0))
    with pytest.raises(TrainerUnreachable, match="before version 1"):
        record_versions(address, "r", tmp_path, 1, alive=lambda: False)


def test_a_recorded_version_with_another_hash_is_refused(tmp_path: Path) -> None:
    path = write_version(tmp_path, WeightsLabel(PolicyVersion(4), "ab" * 32), _weights(0))
    with pytest.raises(CheckpointInvalid, match="are not the weights that were published"):
        read_version(path)


def test_the_origin_is_read_from_the_recipe(tmp_path: Path) -> None:
    version = tmp_path / "version-000000.safetensors"
    assert origin_of(version) is None
    recipe = {"model": {"name": "/models/m"}, "learner": {"learning_rate": 1e-6}, "data": {"source": "aclsum"}}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    origin = origin_of(version)
    assert origin is not None
    assert (origin.title, origin.data) == ("m@1e-06", "aclsum")
