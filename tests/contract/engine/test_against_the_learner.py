"""Engines with a model sample from the distribution that the trainer trains, and say so truly."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tersely.rollout.engines import Engine
from tersely.rollout.engines.base import generate
from tersely.testing.engines import LABEL, Weights, group, run
from tersely.types import PolicyVersion, WeightsLabel

WITH_A_MODEL = True
NEXT = WeightsLabel(PolicyVersion(4), "bb" * 32)
PROMPT = [1, 17, 40, 3, 88, 61, 9]
CHI_SQUARE_Z = 3.5
"""Standard normal deviate that a fair sampler's statistic passes once in 4,000 seeds."""


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_behaviour_logprobs_are_the_learners(
    engine: Engine, learner: Any, weights: Weights, tolerance: float, temperature: float
) -> None:
    groups = [
        group(PROMPT, size=6, limit=30, temperature=temperature, name="stops", stop=tuple(range(0, 97, 12))),
        group([5], size=2, limit=20, temperature=temperature, name="one id", greedy=1),
        group(PROMPT * 20, size=5, limit=8, temperature=temperature, name="exact", exact=True),
    ]
    found = run(engine, *groups)
    for asked in groups:
        for ids, logprobs in found[asked.group_id]:
            assert logprobs == pytest.approx(learner.logprobs(weights, asked, ids), abs=tolerance, rel=0)


def test_groups_that_join_later_have_the_learners_logprobs(
    engine: Engine, learner: Any, weights: Weights, tolerance: float
) -> None:
    asked = [group(PROMPT[: n + 1] * 3, size=2, limit=12 + n, stop=(), name=f"g{n}") for n in range(4)]
    done = []
    for one in asked:
        engine.admit(one)
        done += engine.step()
        done += engine.step()
    while engine.running:
        done += engine.step()
    assert len(done) == 4
    for one in done:
        for completion in one.completions:
            expected = learner.logprobs(weights, one.prompt, completion.token_ids)
            assert list(completion.behaviour_logprobs) == pytest.approx(expected, abs=tolerance, rel=0)


def test_scores_are_the_learners_before_and_after_a_swap(
    engine: Engine, learner: Any, weights: Weights, next_weights: Weights, tolerance: float
) -> None:
    rest = [4, 90, 11, 52, 33, 6, 7, 8] * 4
    asked = group(PROMPT[:1])
    assert engine.score([*PROMPT[:1], *rest]) == pytest.approx(
        learner.logprobs(weights, asked, rest), abs=tolerance, rel=0
    )
    engine.swap(NEXT, next_weights)
    assert engine.score([*PROMPT[:1], *rest]) == pytest.approx(
        learner.logprobs(next_weights, asked, rest), abs=tolerance, rel=0
    )


def test_a_swap_in_flight_gives_every_token_the_logprob_of_the_weights_in_its_span(
    engine: Engine, learner: Any, weights: Weights, next_weights: Weights, tolerance: float
) -> None:
    if not engine.capabilities().in_flight:
        pytest.skip("this engine is swapped when nothing runs")
    asked = [
        group(PROMPT, size=3, limit=24, stop=tuple(range(0, 97, 24)), name="a"),
        group(PROMPT[:2], size=2, limit=16, temperature=0.8, stop=(), name="b", greedy=1),
    ]
    done = []
    engine.admit(asked[0])
    done += engine.step()
    engine.admit(asked[1])
    for _ in range(2):
        done += engine.step()
    engine.swap(NEXT, next_weights)
    engine.score(PROMPT)  # as the worker does, to prove the swap
    while engine.running:
        done += engine.step()
    of_label = {int(LABEL.policy_version): weights, NEXT.policy_version: next_weights}
    spans = 0
    for one in done:
        for completion in one.completions:
            for span in completion.version_spans:
                spans += 1
                stretch = slice(span.first_token, span.first_token + span.token_count)
                expected = learner.logprobs(of_label[span.weights.policy_version], one.prompt, completion.token_ids)
                assert list(completion.behaviour_logprobs)[stretch] == pytest.approx(
                    expected[stretch], abs=tolerance, rel=0
                )
    assert spans > 5


def test_token_frequencies_match_the_softmax(
    engine: Engine, lookup_tokens: int, learner: Any, weights: Weights
) -> None:
    prompt, temperature, each = [3, 50, 7, 3, 50, 7, 3, 50], 0.8, 400
    first, third = torch.zeros(97), torch.zeros(97)
    for seed in range(4):
        asked = group(prompt, size=each, limit=3, temperature=temperature, stop=(), seed=seed)
        (done,) = generate(engine, [asked])
        for completion in done.completions:
            first[completion.token_ids[0]] += 1
            third[completion.token_ids[2]] += 1
    expected_first, expected_third = _marginals(learner.model(weights), prompt, temperature)
    assert _chi_square_z(first, expected_first) < CHI_SQUARE_Z
    assert _chi_square_z(third, expected_third) < CHI_SQUARE_Z


@torch.no_grad()
def _marginals(model: Any, prompt: list[int], temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Exact probabilities of the first and of the third sampled id, summed over all that may stand between."""
    vocabulary = 97
    first_V = torch.softmax(model(torch.tensor([prompt])).logits[0, -1] / temperature, -1)
    pairs = torch.cartesian_prod(torch.arange(vocabulary), torch.arange(vocabulary))
    paths = torch.cat([torch.tensor([prompt]).expand(len(pairs), -1), pairs], dim=1)
    logits = model(paths, logits_to_keep=2).logits / temperature
    second = torch.softmax(logits[::vocabulary, 0], -1)  # [first, second]
    third = torch.softmax(logits[:, 1], -1)
    weight = (first_V[:, None] * second).reshape(-1, 1)
    return first_V, (weight * third).sum(0)


def _chi_square_z(counts_V: torch.Tensor, probabilities_V: torch.Tensor) -> float:
    """Pearson's statistic as a standard normal deviate (Wilson and Hilferty 1931); rare ids are taken together."""
    expected_V = probabilities_V * counts_V.sum()
    common = expected_V >= 5
    expected = torch.cat([expected_V[common], expected_V[~common].sum()[None].clamp(min=1e-9)])
    counts = torch.cat([counts_V[common], counts_V[~common].sum()[None]])
    degrees = len(expected) - 1
    statistic = float(((counts - expected) ** 2 / expected).sum())
    spread = 2 / (9 * degrees)
    return ((statistic / degrees) ** (1 / 3) - (1 - spread)) / spread**0.5


def test_the_prompt_of_a_group_runs_through_the_model_once(
    engine: Engine, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = _count_embedded(kind, monkeypatch)
    run(engine, group((PROMPT * 40)[:240], size=8, limit=1, stop=()))
    # vLLM shares whole blocks of 32: what is left of the prompt is computed for each sample.
    assert 240 <= sum(seen) <= (240 + 7 * (240 % 32) if kind == "vllm" else 1.1 * 240)


def _count_embedded(kind: str, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collects how many ids each forward pass looks up in the embedding."""
    seen: list[int] = []
    if kind == "mlx":
        import mlx.nn

        lookup = mlx.nn.Embedding.__call__

        def counted_mlx(self: Any, ids: Any) -> Any:
            seen.append(ids.size)
            return lookup(self, ids)

        monkeypatch.setattr(mlx.nn.Embedding, "__call__", counted_mlx)
    else:
        embedding = torch.nn.functional.embedding

        def counted(ids: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            seen.append(ids.numel())
            return embedding(ids, *args, **kwargs)

        monkeypatch.setattr(torch.nn.functional, "embedding", counted)
    return seen
