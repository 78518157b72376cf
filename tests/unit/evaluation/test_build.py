"""From completions to an evaluation: figures, arms, baselines, and quality that length can't be traded for."""

from __future__ import annotations

from typing import Any

import pytest

from tersely.errors import RewardFailed, RewardUnknown
from tersely.evaluation.build import BestOf, baseline_arms, build_evaluation, mode_of, model_arms, per_prompt
from tersely.evaluation.metrics import corpus_figures, measure
from tersely.testing.evaluations import completed, prompt, score_words


def test_lengths_are_held_against_the_target_and_only_an_end_of_its_own_is_within() -> None:
    rows = model_arms([prompt("a", completed("x", 10), completed("y", 10, stopped=False), target=8)], 1)
    values = measure(rows["greedy"] + rows["sampled"], score_words).values
    assert [value["abs_length_error"] for value in values] == [2.0, 2.0]
    assert [value["within_5"] for value in values] == [1.0, 0.0]


def test_a_good_text_of_the_wrong_length_wins_nothing_by_the_composite_in_length() -> None:
    text = "the reference of a"
    rows = model_arms([prompt("a", completed(text, 8), completed(text, 60))], 1)
    right, wrong = measure(rows["greedy"] + rows["sampled"], score_words).values
    assert right["composite"] == wrong["composite"] == 1.0
    assert (right["composite_in_length"], wrong["composite_in_length"]) == (1.0, 0.0)
    assert (right["composite_when_in_length"], wrong["composite_when_in_length"]) == (1.0, None)


def test_a_reward_that_is_not_here_is_left_out_with_its_reason_and_meteor_has_a_stand_in() -> None:
    def score(rows: Any, rewards: Any, *, options: Any = None) -> list[dict[str, Any]]:
        if rewards == ["meteor"]:
            raise RewardFailed("no WordNet", "")
        if rewards == ["embedding"]:
            raise RewardFailed("no model", "")
        return score_words(rows, rewards, options=options)

    found = measure(model_arms([prompt("a", completed("x", 8))], 1)["greedy"], score)
    assert found.left_out == {
        "meteor": "no WordNet",
        "embedding_reference": "no model",
        "embedding_document": "no model",
    }
    assert "meteor_exact_stem" in found.values[0]
    assert "embedding_document" not in found.values[0]
    assert found.composite_of == ("rouge_l", "chrf", "meteor_exact_stem")


def test_a_reward_that_was_asked_for_and_is_unknown_is_an_error() -> None:
    def score(rows: Any, rewards: Any, *, options: Any = None) -> list[dict[str, Any]]:
        if rewards == ["nonsense"]:
            raise RewardUnknown("no such reward", "")
        return score_words(rows, rewards, options=options)

    with pytest.raises(RewardUnknown):
        measure(model_arms([prompt("a", completed("x", 8))], 1)["greedy"], score, extra_rewards=["nonsense"])


def test_the_judges_abstention_is_no_value_and_the_composite_is_its_axes() -> None:
    axes = ("faithfulness", "coverage", "conciseness", "clarity")
    full = {"axes": {a: {"score": 0.5, "reason": "so"} for a in axes}, "composite": 2.0, "passed": True}
    partly = {"axes": {**full["axes"], "clarity": {"score": None, "reason": ""}}, "composite": None, "passed": None}  # type: ignore[dict-item]
    prompts = [prompt(i, completed("x", 8)) for i in ("a", "b", "c")]
    found = build_evaluation(
        {},
        prompts,
        {"greedy": model_arms(prompts, 0)["greedy"]},
        {},
        score_words,
        judge=lambda rows: [full, partly, None],
    )
    values = [example["metrics"] for example in found["greedy"]["examples"]]
    assert [value["composite"] for value in values] == [0.5, None, None]
    assert [value["judge_coverage"] for value in values] == [0.5, 0.5, None]
    assert found["greedy"]["metrics"]["judge_clarity"]["n"] == 1
    assert found["greedy"]["examples"][0]["judge"]["clarity"] == "so"


def test_prompts_are_what_is_counted_not_samples() -> None:
    prompts = [prompt("a", completed("x", 8), completed("x", 4), completed("x", 8))]
    found = build_evaluation({}, prompts, model_arms(prompts, 2), {}, score_words)
    assert found["sampled"]["metrics"]["tokens"] == {"mean": 6.0, "ci95": [None, None], "n": 1}
    assert [example["sample"] for example in found["sampled"]["examples"]] == [1, 2]
    assert per_prompt(found["sampled"], "tokens") == {"a": 6.0}


def test_baselines_are_the_cut_the_lead_and_the_best_by_the_weighted_rewards() -> None:
    long = completed("the reference of a and then much more of this text", 40, stopped=False)
    base = [prompt("a", long, completed("x", 8), completed("the reference of a", 8), completed("the", 8))]
    arms = baseline_arms(base, 1, BestOf(3, {"rouge_l": 1.0}), score_words, zero_shot=True)
    assert list(arms) == ["zero_shot", "zero_shot_sampled", "cut_at_target", "best_of_3", "lead"]
    cut = arms["cut_at_target"][0]
    assert (cut["completion_tokens"], cut["stopped"]) == (8, True)
    assert cut["completion"] == "the reference of a and then much more"
    assert arms["best_of_3"][0]["completion"] == "the reference of a"
    assert arms["lead"][0]["completion"] == "Document a."
    assert [mode_of(name) for name in arms] == ["greedy", "sampled", "greedy", "sampled", "greedy"]
    worst = baseline_arms(base, 1, BestOf(3, {"rouge_l": -1.0}), score_words, zero_shot=False)
    assert "zero_shot" not in worst
    assert worst["best_of_3"][0]["completion"] == "x"


def test_a_sample_without_a_value_is_not_the_best() -> None:
    def score(rows: Any, rewards: Any, *, options: Any = None) -> list[dict[str, Any]]:
        return [{"id": row["id"], "rewards": {"r": None if row["completion"] == "x" else -5.0}} for row in rows]

    base = [prompt("a", completed("x", 8), completed("x", 8), completed("y", 8)), prompt("b", *[completed("x", 8)] * 3)]
    best = baseline_arms(base, 1, BestOf(2, {"r": 1.0}), score, zero_shot=False)["best_of_2"]
    assert [row["completion"] for row in best] == ["y", "x"]


def test_distinct_n_of_a_corpus_falls_when_texts_are_alike() -> None:
    alike = corpus_figures(["we show a method"] * 10)["distinct_2"]
    other = corpus_figures([f"w{i} v{i} u{i}" for i in range(10)])["distinct_2"]
    assert alike == pytest.approx(0.1)
    assert other == 1.0
    assert corpus_figures([""])["distinct_1"] is None
