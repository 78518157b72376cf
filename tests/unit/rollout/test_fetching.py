from __future__ import annotations

import threading
from collections.abc import Mapping
from types import MappingProxyType

import pytest
import torch

from tersely.errors import EngineFailed
from tersely.rollout.engines.base import EngineSettings, stage
from tersely.rollout.engines.stub import StubEngine
from tersely.rollout.engines.torch_engine import TorchEngine
from tersely.rollout.fetching import WeightsFetcher
from tersely.types import PolicyVersion, WeightsLabel
from tersely.v1 import checkpoint_pb2

LABEL = WeightsLabel(PolicyVersion(2), "ab" * 32)


class OneVersion:
    """A source that has one version."""

    weights: Mapping[str, torch.Tensor] = MappingProxyType({"a": torch.ones(2)})

    def wait_for_version(
        self, timeout_seconds: float | None, other_than: WeightsLabel | None = None
    ) -> checkpoint_pb2.WeightsManifest | None:
        return checkpoint_pb2.WeightsManifest(weights=LABEL.to_proto())

    def fetch(self, want: WeightsLabel, base: WeightsLabel | None = None) -> Mapping[str, torch.Tensor]:
        return self.weights

    def manifest(self, label: WeightsLabel) -> checkpoint_pb2.WeightsManifest | None:
        return None


def test_the_engine_is_prepared_before_the_weights_count_as_here() -> None:
    staged: list[Mapping[str, torch.Tensor]] = []
    may = threading.Event()

    def prepare(weights: Mapping[str, torch.Tensor]) -> None:
        may.wait(10)
        staged.append(weights)

    with WeightsFetcher(OneVersion(), stage=prepare) as fetcher:
        fetcher.wait(0.1)
        assert fetcher.ready is None
        may.set()
        fetcher.wait(10)
        taken = fetcher.take()
    assert taken is not None
    assert taken.weights is OneVersion.weights
    assert staged == [OneVersion.weights]


@pytest.mark.parametrize("error", [EngineFailed("They do not fit.", "Look at them."), RuntimeError("out of memory")])
def test_weights_that_can_not_be_staged_are_still_handed_over(error: Exception) -> None:
    def prepare(weights: Mapping[str, torch.Tensor]) -> None:
        raise error

    with WeightsFetcher(OneVersion(), stage=prepare) as fetcher:
        fetcher.wait(10)
        assert fetcher.ready == LABEL


def test_only_engines_that_offer_it_and_hold_a_model_are_prepared() -> None:
    stage(StubEngine(EngineSettings()), {})
    stage(TorchEngine(EngineSettings("cpu", 1)), {})
