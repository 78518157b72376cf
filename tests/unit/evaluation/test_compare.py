"""Comparisons: signs, pairs, correction over all that is shown, what is refused, nothing found where nothing is."""

from __future__ import annotations

import numpy as np
import pytest

from tersely.errors import EvaluationInvalid, EvaluationsDiffer
from tersely.evaluation.compare import compare
from tersely.evaluation.null import null_rates
from tersely.evaluation.significance import holm
from tersely.testing.evaluations import completed, drawn_prompts, evaluation, prompt

METRICS = ("tokens", "within_5", "rouge_l", "composite_at_equal_length")


def test_a_difference_is_b_minus_a_and_a_real_one_is_found() -> None:
    a, b = evaluation(drawn_prompts(1)), evaluation(drawn_prompts(2, shift=0.4))
    found = {(p["metric"], p["mode"]): p for p in compare({"a": a, "b": b}, resamples=0)["pairs"]}
    rouge = found["rouge_l", "greedy"]
    expected = b["greedy"]["metrics"]["rouge_l"]["mean"] - a["greedy"]["metrics"]["rouge_l"]["mean"]
    assert rouge["mean_difference"] == pytest.approx(expected)
    assert rouge["mean_difference"] > 0
    assert rouge["p_holm"] < 0.05
    assert rouge["minimum_detectable"] < rouge["minimum_detectable_holm"]
    assert found["composite_at_equal_length", "sampled"]["n"] == 40


def test_the_correction_is_over_all_rows_of_all_pairs() -> None:
    three = {name: evaluation(drawn_prompts(seed, count=12)) for name, seed in (("a", 1), ("b", 2), ("c", 3))}
    found = compare(three, metrics=["rouge_l", "tokens"], resamples=0)
    assert [(p["a"], p["b"]) for p in found["pairs"][::4]] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert found["comparisons"] == 12
    assert [p["p_holm"] for p in found["pairs"]] == holm([p["p"] for p in found["pairs"]])


def test_an_evaluation_against_itself_has_no_difference_at_all() -> None:
    a = evaluation(drawn_prompts(1))
    for pair in compare({"a": a, "again": a}, resamples=0)["pairs"]:
        assert pair["mean_difference"] in (0.0, None)
        assert pair["p_holm"] in (1.0, None)


def test_prompts_are_paired_by_id_whatever_their_order() -> None:
    prompts = drawn_prompts(1, count=10)
    found = compare({"a": evaluation(prompts), "b": evaluation(prompts[::-1])}, resamples=0)
    assert all(pair["mean_difference"] in (0.0, None) for pair in found["pairs"])


def test_prompts_of_one_side_only_and_other_settings_are_remarked() -> None:
    prompts = drawn_prompts(1, count=10)
    found = compare({"a": evaluation(prompts), "b": evaluation(prompts[:8], seed=2)}, resamples=0)
    assert found["pairs"][0]["n"] == 8
    assert found["remarks"] == [
        "a and b: 2 prompts that only one of them has are left out.",
        "a and b differ in: seed.",
    ]


def test_other_prompts_targets_or_references_are_refused() -> None:
    a = evaluation([prompt("a", completed("x", 8), completed("x", 8))])
    for other in (
        prompt("b", completed("x", 8), completed("x", 8)),
        prompt("a", completed("x", 8), completed("x", 8), target=9),
        prompt("a", completed("x", 8), completed("x", 8), reference="another"),
    ):
        with pytest.raises(EvaluationsDiffer):
            compare({"a": a, "b": evaluation([other])})


def test_the_same_policy_twice_is_found_to_differ_in_at_most_one_of_twenty() -> None:
    found = [
        null_rates(evaluation(drawn_prompts(seed, count=50, samples=6), samples=6), 20, metrics=METRICS, seed=seed)
        for seed in range(10)
    ]
    assert sum(one["simulations"] for one in found) == 200
    assert {one["comparisons_each"] for one in found} == {len(METRICS)}
    assert sum(one["false_positives"] for one in found) / 10 <= 0.05
    assert sum(one["uncorrected"]["t"] for one in found) / 10 == pytest.approx(0.05, abs=0.03)


def test_two_seeds_of_one_policy_are_found_to_differ_in_at_most_one_of_twenty() -> None:
    rng = np.random.default_rng(11)
    wrong = 0
    for _ in range(30):
        a, b = (evaluation(drawn_prompts(int(rng.integers(1 << 30)), count=30)) for _ in range(2))
        found = compare({"a": a, "b": b}, metrics=METRICS, resamples=0)
        wrong += any((pair["p_holm"] if pair["p_holm"] is not None else 1.0) < 0.05 for pair in found["pairs"])
    assert wrong <= 1


def test_a_null_needs_two_samples_of_each_prompt() -> None:
    with pytest.raises(EvaluationInvalid):
        null_rates(evaluation(drawn_prompts(1, count=4)), 5)
