"""What an ablation found: arms with their figures over all seeds, tests between them, and examples.

Values of a prompt are averaged over the seeds (and samples) of an arm first, and arms are compared prompt by prompt.
So intervals and tests say how far the result depends on which prompts were drawn; how far it depends on the seed is
shown beside them, seed by seed, for a handful of seeds has no interval worth the name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tersely.ablation.plan import Arm, Matrix
from tersely.ablation.run import CellOutcome
from tersely.evaluation.build import per_prompt
from tersely.evaluation.compare import AT_EQUAL_LENGTH, compare_arms, correct
from tersely.evaluation.files import read_evaluation
from tersely.evaluation.intervals import RESAMPLES, mean_interval
from tersely.evaluation.significance import ALPHA, equal_length_test
from tersely.supervise.run_dir import read_json

MODES = ("greedy", "sampled")
EXAMPLES = 4


def build_report(matrix: Matrix, outcomes: Sequence[CellOutcome], resamples: int = RESAMPLES) -> dict[str, Any]:
    """What report.json holds; page and table are made from it alone.

    Args:
        matrix: What was to be run.
        outcomes: What became of each cell.
        resamples: Bootstrap samples.

    Raises:
        EvaluationInvalid: An evaluation in a cell's directory is damaged.
    """
    found = {one.cell.name: read_evaluation(one.directory.evaluation) for one in outcomes if not one.failure}
    by_arm: dict[Arm, dict[int, dict[str, Any]]] = {arm: {} for arm in matrix.arms}
    for one in outcomes:
        if not one.failure:
            by_arm[one.cell.arm][one.cell.seed] = found[one.cell.name]
    measured = {arm: seeds for arm, seeds in by_arm.items() if seeds}
    first = next(iter(found.values()), {})
    recipe = matrix.cells[0].recipe
    pairs = _comparisons(matrix, measured, resamples)
    with_baselines = next((one for one in found.values() if one["baselines"]), None)
    return {
        "kind": "ablation",
        "file": matrix.file.name,
        "recipe": matrix.recipe_path.name,
        "model": recipe.model.name,
        "data": recipe.data.source,
        "split": matrix.measure.split,
        "prompts": len({example["id"] for example in first["greedy"]["examples"]}) if first else 0,
        "target_tokens": first.get("target_tokens"),
        "target_range": first.get("target_range"),
        "max_completion_tokens": recipe.max_completion_tokens,
        "steps": matrix.steps,
        "completions_per_run": matrix.steps * recipe.run.groups_per_step * recipe.run.group_size,
        "seeds": sorted({cell.seed for cell in matrix.cells}),
        "tested_mode": matrix.measure.mode,
        "composite_of": first.get("composite_of", []),
        "left_out": first.get("left_out", {}),
        "complete": all(not one.failure for one in outcomes),
        "arms": [_arm(arm, seeds, resamples) for arm, seeds in measured.items()],
        "baselines": _baselines(with_baselines),
        "comparisons": pairs,
        "alpha": round(ALPHA, 6),
        "examples": _examples(measured),
        "cells": [_cell(one) for one in outcomes],
    }


def pooled(arms: Sequence[Mapping[str, Any]], resamples: int = RESAMPLES) -> dict[str, Any]:
    """One mode of several seeds as a single arm: all examples, and the figures of prompts averaged over the seeds."""
    examples = [example for arm in arms for example in arm["examples"]]
    names = [name for name in arms[0]["metrics"] if all(name in arm["metrics"] for arm in arms)]
    arm: dict[str, Any] = {"examples": examples}
    metrics = {}
    for name in names:
        values = list(per_prompt(arm, name).values())
        mean, interval = mean_interval(values, resamples)
        metrics[name] = {"mean": mean, "ci95": interval, "n": len(values)}
    return {"metrics": metrics, **arm}


def _arm(arm: Arm, seeds: Mapping[int, Mapping[str, Any]], resamples: int) -> dict[str, Any]:
    row: dict[str, Any] = {
        "arm": arm.name,
        "config": arm.config,
        "schedule": arm.schedule,
        "seeds": sorted(seeds),
    }
    for mode in MODES:
        whole = pooled([evaluation[mode] for evaluation in seeds.values()], resamples)
        row[mode] = {
            "metrics": {
                name: {
                    **figure,
                    "by_seed": {str(s): one[mode]["metrics"][name]["mean"] for s, one in sorted(seeds.items())},
                }
                for name, figure in whole["metrics"].items()
            },
            "lengths": [example["completion_tokens"] for example in whole["examples"]],
        }
    return row


def _baselines(evaluation: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """What needs no training; the arms share their prompts, so one run's are everybody's."""
    if evaluation is None:
        return []
    return [
        {"arm": name, "metrics": arm["metrics"], "lengths": [one["completion_tokens"] for one in arm["examples"]]}
        for name, arm in evaluation["baselines"].items()
    ]


def _comparisons(
    matrix: Matrix, measured: Mapping[Arm, Mapping[int, Mapping[str, Any]]], resamples: int
) -> list[dict[str, Any]]:
    """Each arm against the length alone, and each schedule of a configuration against its first."""
    asked: list[tuple[Arm, Arm]] = []
    lone = next((arm for arm in matrix.arms if arm.schedule is None), None)
    asked += [(lone, arm) for arm in matrix.arms if lone is not None and arm != lone]
    for arm in matrix.arms:
        others = [one for one in matrix.arms if one.config == arm.config]
        asked += [(others[0], arm)] if arm != others[0] else []
    mode = matrix.measure.mode
    pairs: list[dict[str, Any]] = []
    for a, b in asked:
        shared = sorted(measured.get(a, {}).keys() & measured.get(b, {}).keys())
        if not shared:
            continue
        early, late = (pooled([measured[arm][seed][mode] for seed in shared], resamples=0) for arm in (a, b))
        for pair in compare_arms(a.name, early, b.name, late, mode, matrix.measure.tested, resamples):
            if pair["metric"] not in matrix.measure.tested:
                continue
            pair["by_seed"] = _by_seed(measured[a], measured[b], shared, mode, pair["metric"])
            pairs.append(pair)
    correct(pairs)
    return pairs


def _by_seed(
    a: Mapping[int, Mapping[str, Any]], b: Mapping[int, Mapping[str, Any]], seeds: Sequence[int], mode: str, name: str
) -> dict[str, float | None]:
    """The same difference for each seed alone."""
    found: dict[str, float | None] = {}
    for seed in seeds:
        early, late = a[seed][mode], b[seed][mode]
        shown = _differences(early, late, "composite" if name == AT_EQUAL_LENGTH else name)
        if name == AT_EQUAL_LENGTH:
            tokens = _differences(early, late, "tokens")
            test = equal_length_test(list(shown.values()), [tokens[key] for key in shown], resamples=50)
            found[str(seed)] = test.mean_difference
        else:
            found[str(seed)] = sum(shown.values()) / len(shown) if shown else None
    return found


def _differences(early: Mapping[str, Any], late: Mapping[str, Any], name: str) -> dict[str, float]:
    before, after = per_prompt(early, name), per_prompt(late, name)
    return {key: after[key] - before[key] for key in after if key in before}


def _examples(measured: Mapping[Arm, Mapping[int, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """The first prompts with each arm's greedy summary, of its first seed."""
    shown: dict[str, dict[str, Any]] = {}
    for arm, seeds in measured.items():
        seed = min(seeds)
        evaluation = seeds[seed]
        for example in evaluation["greedy"]["examples"][:EXAMPLES]:
            entry = shown.setdefault(
                example["id"],
                {
                    "id": example["id"],
                    "target_tokens": example["target_tokens"],
                    "reference": example["reference"],
                    "document": evaluation.get("documents", {}).get(example["id"], ""),
                    "summaries": [],
                },
            )
            entry["summaries"].append(
                {
                    "arm": arm.name,
                    "seed": seed,
                    "completion": example["completion"],
                    "tokens": example["completion_tokens"],
                    "stopped": example["stopped"],
                    "rouge_l": example["metrics"].get("rouge_l"),
                }
            )
    return list(shown.values())[:EXAMPLES]


def _cell(one: CellOutcome) -> dict[str, Any]:
    report = read_json(one.directory.run.report) or {}
    return {
        "name": one.cell.name,
        "arm": one.cell.arm.name,
        "seed": one.cell.seed,
        "steps": report.get("steps"),
        "groups_trained": (report.get("groups") or {}).get("trained"),
        "seconds": report.get("seconds"),
        "initial_weights_sha256": report.get("initial_weights_sha256"),
        "final_weights_sha256": report.get("final_weights_sha256"),
        "failure": one.failure or None,
    }
