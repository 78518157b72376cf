"""Differences between evaluations, prompt by prompt, corrected for all that are shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from tersely.errors import EvaluationsDiffer
from tersely.evaluation.build import mode_of, per_prompt
from tersely.evaluation.intervals import RESAMPLES
from tersely.evaluation.significance import (
    ALPHA,
    EqualLengthTest,
    PairedTest,
    equal_length_test,
    holm,
    minimum_detectable,
    paired_test,
)

MODES = ("greedy", "sampled")
AT_EQUAL_LENGTH = "composite_at_equal_length"
_SAME = ("data", "split", "prompt", "max_document_tokens", "max_completion_tokens", "tokenizer", "seed", "temperature")


def compare(
    evaluations: Mapping[str, Mapping[str, Any]],
    *,
    metrics: Sequence[str] = (),
    baselines: bool = False,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """Compares each evaluation with each that stands before it, in both modes and every figure.

    Values of several samples of a prompt are averaged first: prompts are what is drawn, not samples. One p-value per
    comparison, that of the paired t-test, is corrected by Holm over all comparisons of the result together.

    Args:
        evaluations: What `tersely evaluate` wrote, by name.
        metrics: Only these figures; none: all that both have.
        baselines: Hold each evaluation against its own baselines too.
        resamples: Bootstrap samples.

    Returns:
        `pairs` with `a`, `b`, `metric`, `mode`, `mean_difference` (b - a) and so on; see docs/evaluation.md.

    Raises:
        EvaluationsDiffer: Two have no prompt in common, or prompts with other references or targets.
    """
    remarks: list[str] = []
    pairs: list[dict[str, Any]] = []
    for (a, first), (b, second) in combinations(evaluations.items(), 2):
        remarks += _check(a, first, b, second)
        for mode in MODES:
            pairs += compare_arms(a, first[mode], b, second[mode], mode, metrics, resamples)
    if baselines:
        for name, evaluation in evaluations.items():
            for baseline, arm in evaluation["baselines"].items():
                mode = mode_of(baseline)
                shown = f"{name}: {baseline}"
                pairs += compare_arms(shown, arm, name, evaluation[mode], mode, metrics, resamples)
    correct(pairs)
    add_power(pairs)
    return {
        "kind": "comparison",
        "evaluations": {name: {key: found.get(key) for key in _HEAD} for name, found in evaluations.items()},
        "comparisons": sum(pair["p"] is not None for pair in pairs),
        "alpha": round(ALPHA, 6),
        "remarks": remarks,
        "pairs": pairs,
    }


_HEAD = ("model", "policy_version", "weights_sha256", "data", "split", "limit", "seed", "target_tokens", "composite_of")


def compare_arms(
    a: str,
    first: Mapping[str, Any],
    b: str,
    second: Mapping[str, Any],
    mode: str,
    metrics: Sequence[str] = (),
    resamples: int = RESAMPLES,
) -> list[dict[str, Any]]:
    """All figures of two arms; the rest is filled in by `correct` and `add_power`."""
    shared = [name for name in second["metrics"] if name in first["metrics"] and (not metrics or name in metrics)]
    found: list[dict[str, Any]] = []
    for name in shared:
        early, late = per_prompt(first, name), per_prompt(second, name)
        both = [key for key in late if key in early]
        found.append(_pair(a, b, name, mode, paired_test([late[key] - early[key] for key in both], resamples)))
    if "composite" in shared or AT_EQUAL_LENGTH in metrics:
        early, late = per_prompt(first, "composite"), per_prompt(second, "composite")
        short, long = per_prompt(first, "tokens"), per_prompt(second, "tokens")
        both = [key for key in late if key in early]
        test = equal_length_test(
            [late[key] - early[key] for key in both], [long[key] - short[key] for key in both], resamples
        )
        found.append(_pair(a, b, AT_EQUAL_LENGTH, mode, test))
    return found


def correct(pairs: Sequence[dict[str, Any]]) -> None:
    """Fills in the p-values corrected for all comparisons that are shown together."""
    adjusted = holm([pair["p"] for pair in pairs])
    for pair, p in zip(pairs, adjusted, strict=True):
        pair["p_holm"] = p


def add_power(pairs: Sequence[dict[str, Any]]) -> None:
    """Fills in what could have been found: by one test alone, and by the strictest of all these under Holm."""
    count = sum(pair["p"] is not None for pair in pairs)
    for pair in pairs:
        spread, n = pair["standard_deviation"], pair["n"]
        pair["minimum_detectable"] = minimum_detectable(spread, n)
        pair["minimum_detectable_holm"] = minimum_detectable(spread, n, alpha=ALPHA / max(count, 1))


def _pair(a: str, b: str, metric: str, mode: str, test: PairedTest) -> dict[str, Any]:
    pair = {
        "a": a,
        "b": b,
        "metric": metric,
        "mode": mode,
        "mean_difference": test.mean_difference,
        "ci95": test.ci95,
        "p": test.p,
        "p_wilcoxon": test.p_wilcoxon,
        "p_holm": None,
        "n": test.n,
        "standard_deviation": test.standard_deviation,
        "minimum_detectable": None,
        "minimum_detectable_holm": None,
    }
    if isinstance(test, EqualLengthTest):
        pair |= {"slope_per_token": test.slope, "extrapolated": test.extrapolated}
    return pair


def _check(a: str, first: Mapping[str, Any], b: str, second: Mapping[str, Any]) -> list[str]:
    """Remarks on what is not the same; an error where values can't be paired at all."""
    early = {example["id"]: example for example in first["greedy"]["examples"]}
    late = {example["id"]: example for example in second["greedy"]["examples"]}
    both = early.keys() & late.keys()
    if not both:
        raise EvaluationsDiffer(
            f"{a} and {b} have no prompt in common.", "Evaluate both with the same --data, --split and --limit."
        )
    for key in sorted(both):
        if early[key]["target_tokens"] != late[key]["target_tokens"]:
            raise EvaluationsDiffer(
                f"{a} asks for {early[key]['target_tokens']} tokens where {b} asks for {late[key]['target_tokens']}"
                f" (prompt {key}): figures of different lengths can't be compared.",
                "Evaluate both with the same --target-tokens; --like FILE takes all settings from an evaluation.",
            )
        if early[key]["reference"] != late[key]["reference"]:
            raise EvaluationsDiffer(
                f"{a} and {b} have other references for the prompt {key}.", "Evaluate both on the same data."
            )
    remarks = []
    alone = len(early.keys() ^ late.keys())
    if alone:
        remarks.append(f"{a} and {b}: {alone} prompts that only one of them has are left out.")
    differ = [key for key in _SAME if first.get(key) != second.get(key)]
    if differ:
        remarks.append(f"{a} and {b} differ in: {', '.join(differ)}.")
    if first.get("composite_of") != second.get("composite_of"):
        remarks.append(f"{a} and {b} make their composite of other figures: it can't be compared.")
    return remarks
