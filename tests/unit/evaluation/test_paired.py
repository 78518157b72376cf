import numpy as np
import pytest

from tersely.evaluation.paired import paired_difference


def test_pairs_by_prompt_and_leaves_out_what_has_no_partner() -> None:
    result = paired_difference({"a": 1.0, "b": 2.0, "c": 9.0}, {"b": 5.0, "a": 2.0, "d": 0.0})
    assert (result["mean"], result["n"]) == (2.0, 2)


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(5)
    hits = 0
    for _ in range(40):
        before = {str(i): float(v) for i, v in enumerate(rng.normal(0, 1, 50))}
        after = {key: value + 0.3 + float(rng.normal(0, 0.5)) for key, value in before.items()}
        interval = paired_difference(before, after)
        hits += interval["low"] <= 0.3 <= interval["high"]
    assert 33 <= hits <= 40


def test_equal_differences_and_no_pairs_have_no_spread() -> None:
    assert paired_difference({"a": 0.0, "b": 1.0}, {"a": 0.5, "b": 1.5}) == {
        "mean": 0.5,
        "low": 0.5,
        "high": 0.5,
        "n": 2,
    }
    assert paired_difference({"a": 0.0}, {"b": 1.0})["mean"] is None
    assert paired_difference({"a": 0.0}, {"a": 1.0})["low"] == pytest.approx(1.0)
