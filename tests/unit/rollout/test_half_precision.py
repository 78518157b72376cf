"""Weights in half precision: right ones are served although single tokens are far off, wrong ones are not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tersely.errors import WeightsNotApplied
from tersely.rollout.engines.base import EngineSettings
from tersely.rollout.engines.torch_engine import TorchEngine
from tersely.rollout.fetching import FetchedWeights
from tersely.rollout.verify import check_probe
from tersely.testing.engines import LABEL, Weights, random_weights, tiny_config
from tersely.v1 import checkpoint_pb2
from tersely.weights.probe import Probe, probe_ids

IDS = probe_ids(97)


def loaded(folder: Path, weights: Weights, dtype: torch.dtype) -> TorchEngine:
    engine = TorchEngine(EngineSettings("cpu", 1), dtype=dtype)
    engine.load(folder, LABEL, weights)
    return engine


def fetched(weights: Weights, logprobs: list[float]) -> FetchedWeights:
    manifest = checkpoint_pb2.WeightsManifest(weights=LABEL.to_proto(), probe=Probe(IDS, logprobs).to_proto())
    return FetchedWeights(LABEL, weights, manifest, 0.0)


@pytest.fixture
def weights() -> Weights:
    return random_weights(tiny_config(), seed=0)


def test_bf16_weights_are_proved_by_the_mean_and_wrong_ones_refused(model_folder: Path, weights: Weights) -> None:
    exact = loaded(model_folder, weights, torch.float32).score(IDS)
    engine = loaded(model_folder, weights, torch.bfloat16)
    assert engine.capabilities().dtype == "bfloat16"
    found = check_probe(engine, fetched(weights, exact))
    assert found is not None
    assert 0 < found < engine.capabilities().logprob_tolerance
    wrong = dict(weights)
    name = "model.layers.1.mlp.down_proj.weight"
    wrong[name] = wrong[name].flip(0)
    engine.swap(LABEL, wrong)
    with pytest.raises(WeightsNotApplied):
        check_probe(engine, fetched(weights, exact))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_token_that_is_far_off_decides_in_full_precision_only(
    model_folder: Path, weights: Weights, dtype: torch.dtype
) -> None:
    engine = loaded(model_folder, weights, dtype)
    off = engine.score(IDS)
    off[7] += 0.5
    if dtype == torch.float32:
        with pytest.raises(WeightsNotApplied):
            check_probe(engine, fetched(weights, off))
    else:
        assert check_probe(engine, fetched(weights, off)) == pytest.approx(0.5 / len(off), rel=1e-3)
