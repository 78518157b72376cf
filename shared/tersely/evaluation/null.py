"""How often the comparison finds a difference where there is none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tersely.errors import EvaluationInvalid
from tersely.evaluation.compare import compare_arms, correct
from tersely.evaluation.significance import ALPHA

_RESAMPLES = 0  # nobody looks at the intervals


def null_rates(
    evaluation: Mapping[str, Any], simulations: int, *, metrics: Sequence[str] = (), seed: int = 0
) -> dict[str, Any]:
    """Compares a policy with itself: each simulation draws two different samples of each prompt as if of two models.

    Args:
        evaluation: With at least two sampled summaries per prompt.
        simulations: How many.
        metrics: Only these figures.
        seed: Of the drawing.

    Returns:
        `false_positives`: share of simulations with any comparison below 5 % after Holm; `uncorrected`: share of all
        single comparisons below 5 % before it, by t-test and by Wilcoxon.

    Raises:
        EvaluationInvalid: There are not two samples of each prompt.
    """
    by_prompt: dict[str, list[Mapping[str, Any]]] = {}
    for example in evaluation["sampled"]["examples"]:
        by_prompt.setdefault(example["id"], []).append(example)
    if not by_prompt or min(map(len, by_prompt.values())) < 2:
        raise EvaluationInvalid(
            "The evaluation has one sample per prompt: two are needed to compare a policy with itself.",
            "Evaluate with --samples 8 or so.",
        )
    figures = dict.fromkeys(evaluation["sampled"]["metrics"])
    rng = np.random.default_rng(seed)
    found = tests = single = signed = 0
    for _ in range(simulations):
        drawn = [(own, rng.permutation(len(own))) for own in by_prompt.values()]
        arms = [{"metrics": figures, "examples": [own[order[side]] for own, order in drawn]} for side in (0, 1)]
        pairs = compare_arms("a", arms[0], "b", arms[1], "sampled", metrics, _RESAMPLES)
        correct(pairs)
        found += any(pair["p_holm"] is not None and pair["p_holm"] < ALPHA for pair in pairs)
        tests += sum(pair["p"] is not None for pair in pairs)
        single += sum(pair["p"] is not None and pair["p"] < ALPHA for pair in pairs)
        signed += sum(pair["p_wilcoxon"] is not None and pair["p_wilcoxon"] < ALPHA for pair in pairs)
    return {
        "kind": "null",
        "simulations": simulations,
        "prompts": len(by_prompt),
        "comparisons_each": tests / simulations,
        "false_positives": found / simulations,
        "uncorrected": {"t": single / max(tests, 1), "wilcoxon": signed / max(tests, 1)},
    }
