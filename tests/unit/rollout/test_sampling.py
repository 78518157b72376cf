from __future__ import annotations

import math

import pytest
import torch

from tersely.errors import EngineFailed
from tersely.grpo.seeds import uniform
from tersely.rollout.engines.sampling import sample


def test_frequencies_follow_the_distribution() -> None:
    logits = torch.tensor([0.3, -1.0, 1.2, 0.0, -0.4])
    for temperature in (1.0, 0.5):
        n = 4000
        uniforms = [uniform(7, index, 3) for index in range(n)]
        drawn = sample(logits.expand(n, -1), [temperature] * n, uniforms)
        expected = torch.softmax(logits / temperature, -1) * n
        counts = torch.bincount(torch.tensor(drawn.ids), minlength=5)
        # 99.9 % point of chi-square with 4 degrees of freedom.
        assert ((counts - expected) ** 2 / expected).sum().item() < 18.47


@pytest.mark.parametrize("number", [0.0, 0.5, math.nextafter(1.0, 0.0)])
def test_a_token_of_probability_zero_is_never_drawn(number: float) -> None:
    infinite = float("-inf")
    logits = torch.tensor([[infinite, 1.0, infinite, 1.0, infinite]])
    drawn = sample(logits, [1.0], [number])
    assert drawn.ids == [1 if number < 0.5 else 3]
    assert drawn.logprobs == [pytest.approx(math.log(0.5))]


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    torch.manual_seed(0)
    logits = torch.randn(6, 50) * 3
    temperatures, uniforms = [1.0, 0.5, 2.0, 1.0, 0.7, 1.3], [0.1, None, 0.93, 0.5, None, 0.2]
    together = sample(logits, temperatures, uniforms)
    for row in range(6):
        alone = sample(logits[row : row + 1], temperatures[row : row + 1], uniforms[row : row + 1])
        assert (alone.ids[0], alone.logprobs[0]) == (together.ids[row], together.logprobs[row])


def test_greedy_takes_the_likeliest_and_records_its_logprob_at_the_temperature() -> None:
    drawn = sample(torch.tensor([[0.0, 2.0, 1.0]]), [2.0], [None])
    assert drawn.ids == [1]
    assert drawn.logprobs == [pytest.approx(1.0 - math.log(1 + math.e + math.exp(0.5)))]


def test_not_a_number_is_refused() -> None:
    with pytest.raises(EngineFailed):
        sample(torch.full((1, 4), float("nan")), [1.0], [0.5])


@pytest.mark.parametrize("vocabulary", [1, 127, 128, 129, 1000])
def test_the_token_is_the_first_whose_cdf_exceeds_the_number(vocabulary: int) -> None:
    torch.manual_seed(vocabulary)
    logits = torch.randn(vocabulary) * 4
    cdf = torch.softmax(logits.double(), -1).cumsum(0)
    uniforms = [uniform(5, index, 0) for index in range(500)]
    drawn = sample(logits.expand(500, -1), [1.0] * 500, uniforms)
    for number, token, logprob in zip(uniforms, drawn.ids, drawn.logprobs, strict=True):
        assert (cdf[token - 1].item() if token else 0.0) - 1e-6 <= number < cdf[token].item() + 1e-6
        assert logprob == pytest.approx(torch.log_softmax(logits, -1)[token].item(), abs=1e-5)
