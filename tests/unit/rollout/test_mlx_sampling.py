from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
import torch

from tersely.grpo.seeds import uniform
from tersely.rollout.engines.mlx_sampling import RowSampler
from tersely.rollout.engines.sampling import sample


@pytest.fixture(autouse=True)
def on_the_cpu() -> None:
    mx.set_default_device(mx.Device(mx.cpu))


def drawn(sampler: RowSampler, logits: torch.Tensor) -> tuple[list[int], list[float]]:
    """One token per row of logits, as mlx-lm hands them over: normalised, one position after the other."""
    normal = torch.log_softmax(logits, -1).numpy()
    ids = [int(sampler(mx.array(row[None])).item()) for row in normal]
    return ids, [float(sampler.next_logprob().item()) for _ in ids]


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_ids_and_logprobs_are_those_of_the_torch_sampler(wide: bool, temperature: float) -> None:
    logits = torch.randn(200, 5000, generator=torch.Generator().manual_seed(0)) * 3
    ids, logprobs = drawn(RowSampler(temperature, 7, 2, 10, wide), logits)
    expected = sample(logits, [temperature] * 200, [uniform(7, 2, 10 + n) for n in range(200)])
    same = np.array(ids) == np.array(expected.ids)
    assert same.mean() >= (1.0 if wide else 0.98)
    assert np.array(logprobs)[same] == pytest.approx(np.array(expected.logprobs)[same], abs=1e-5)


def test_without_a_seed_the_likeliest_is_taken() -> None:
    logits = torch.randn(20, 50, generator=torch.Generator().manual_seed(1))
    ids, logprobs = drawn(RowSampler(1.0, None, 0, 0, True), logits)
    assert ids == logits.argmax(-1).tolist()
    assert logprobs == pytest.approx(torch.log_softmax(logits, -1).max(-1).values.tolist(), abs=1e-5)


@pytest.mark.parametrize("wide", [True, False])
def test_a_token_without_probability_is_never_drawn(wide: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.full((1, 8), float("-inf"))
    logits[0, [2, 5]] = 0.0
    for at, expected in ((0.0, 2), (0.4999, 2), (0.5, 5), (1 - 2**-53, 5)):
        monkeypatch.setattr("tersely.rollout.engines.mlx_sampling.uniform", lambda *_, at=at: at)
        assert drawn(RowSampler(1.0, 1, 0, 0, wide), logits)[0] == [expected]
