"""From completions to an evaluation: the arms, their figures, and the differences from the baselines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tersely.evaluation.completed import Completed, CompletedPrompt
from tersely.evaluation.intervals import RESAMPLES, mean_interval
from tersely.evaluation.metrics import Row, ScoreRows, Values, corpus_figures, measure

Judge = Callable[[Sequence[Row]], list[dict[str, Any] | None]]


@dataclass(frozen=True, slots=True)
class BestOf:
    """How best-of-n chooses among samples: the largest weighted sum of rewards.

    Attributes:
        n: Samples to choose from.
        weights: Factor by reward.
        options: Options by reward.
    """

    n: int
    weights: Mapping[str, float]
    options: Mapping[str, Mapping[str, object]] = field(default_factory=dict)


def model_arms(prompts: Sequence[CompletedPrompt], samples: int) -> dict[str, list[Row]]:
    """The rows of the two modes, `samples` sampled ones per prompt."""
    return {
        "greedy": [_row(p, p.greedy) for p in prompts],
        "sampled": [_row(p, one, sample=k) for p in prompts for k, one in enumerate(p.sampled[:samples], 1)],
    }


def baseline_arms(
    base: Sequence[CompletedPrompt], samples: int, best_of: BestOf, score: ScoreRows, *, zero_shot: bool
) -> dict[str, list[Row]]:
    """The rows of the baselines.

    Args:
        base: What the untrained model made of the same prompts with the same seed.
        samples: Sampled ones per prompt that stand beside the trained model's.
        best_of: How the best sample is chosen.
        score: `score_rows` of the scorer.
        zero_shot: Whether the base model is another than the one evaluated.
    """
    arms: dict[str, list[Row]] = {}
    if zero_shot:
        own = model_arms(base, samples)
        arms["zero_shot"] = own["greedy"]
        arms["zero_shot_sampled"] = own["sampled"]
    # A text that is cut ends where it is cut: that counts as ended, or the cut would be held against its length.
    arms["cut_at_target"] = [
        _row(p, None, completion=p.greedy.cut_text, completion_tokens=p.greedy.cut_tokens, stopped=_ends(p.greedy))
        for p in base
    ]
    arms[f"best_of_{best_of.n}"] = _best(base, best_of, score)
    arms["lead"] = [_row(p, None, completion=p.lead, completion_tokens=p.lead_tokens, stopped=True) for p in base]
    return arms


def mode_of(baseline: str) -> str:
    """The mode of the model that a baseline is held against."""
    return "sampled" if baseline.startswith("best_of_") or baseline == "zero_shot_sampled" else "greedy"


def build_evaluation(
    head: Mapping[str, Any],
    prompts: Sequence[CompletedPrompt],
    arms: Mapping[str, list[Row]],
    baselines: Mapping[str, list[Row]],
    score: ScoreRows,
    *,
    extra_rewards: Sequence[str] = (),
    judge: Judge | None = None,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """The evaluation as it is written to a file.

    Args:
        head: What was evaluated and how; goes in first.
        prompts: Of the evaluated model.
        arms: Of `model_arms`.
        baselines: Of `baseline_arms`; empty for none.
        score: `score_rows` of the scorer.
        extra_rewards: More rewards to show.
        judge: Judges rows; None for a row that it could not take.
        resamples: Bootstrap samples.
    """
    named = [*arms.items(), *baselines.items()]
    rows = [row for _, found in named for row in found]
    # Ids that are unique across arms: what scores them may keep results by id.
    asked = [{**row, "id": f"{number}", "group": row["id"]} for number, row in enumerate(rows)]
    judged = judge(asked) if judge else None
    measured = measure(asked, score, extra_rewards=extra_rewards, judged=judged)
    built: dict[str, dict[str, Any]] = {}
    at = 0
    for name, found in named:
        part = slice(at, at + len(found))
        built[name] = _arm(found, measured.values[part], judged[part] if judged else None, resamples)
        at += len(found)
    return {
        "kind": "evaluation",
        **head,
        "composite_of": list(measured.composite_of),
        "left_out": measured.left_out,
        "documents": {p.id: p.document for p in prompts},
        "documents_cut": sum(p.document_tokens_cut > 0 for p in prompts),
        **{name: built[name] for name in arms},
        "baselines": {name: built[name] for name in baselines},
    }


def per_prompt(arm: Mapping[str, Any], name: str) -> dict[str, float]:
    """A figure by prompt: the mean over its samples that have it."""
    found: dict[str, list[float]] = {}
    for example in arm["examples"]:
        value = example["metrics"].get(name)
        if value is not None:
            found.setdefault(example["id"], []).append(float(value))
    return {identity: sum(values) / len(values) for identity, values in found.items()}


def _arm(rows: Sequence[Row], values: Sequence[Values], judged: Sequence[Any] | None, resamples: int) -> dict[str, Any]:
    examples = []
    for index, (row, metrics) in enumerate(zip(rows, values, strict=True)):
        example = {key: value for key, value in row.items() if key != "document"}
        example["metrics"] = metrics
        if judged is not None and judged[index]:
            axes = judged[index].get("axes") or {}
            example["judge"] = {axis: (one or {}).get("reason") for axis, one in axes.items()}
        examples.append(example)
    arm: dict[str, Any] = {"examples": examples}
    names = list(dict.fromkeys(name for example in examples for name in example["metrics"]))
    figures = {}
    for name in names:
        by_prompt = list(per_prompt(arm, name).values())
        mean, interval = mean_interval(by_prompt, resamples)
        figures[name] = {"mean": mean, "ci95": interval, "n": len(by_prompt)}
    return {"metrics": figures, "corpus": corpus_figures([row["completion"] for row in rows]), **arm}


def _row(prompt: CompletedPrompt, done: Completed | None, sample: int | None = None, **own: Any) -> Row:
    if done is not None:
        own = {"completion": done.text, "completion_tokens": done.tokens, "stopped": done.stopped}
    return {
        "id": prompt.id,
        **({} if sample is None else {"sample": sample}),
        **own,
        "target_tokens": prompt.target_tokens,
        "reference": prompt.reference,
        "document": prompt.document,
    }


def _ends(done: Completed) -> bool:
    return done.stopped or done.cut_tokens < done.tokens


def _best(base: Sequence[CompletedPrompt], best_of: BestOf, score: ScoreRows) -> list[Row]:
    rows = [_row(p, one, sample=k) for p in base for k, one in enumerate(p.sampled[: best_of.n], 1)]
    asked = [{**row, "id": f"{number}", "group": row["id"]} for number, row in enumerate(rows)]
    scored = score(asked, list(best_of.weights), options={k: dict(v) for k, v in best_of.options.items()} or None)
    best: dict[str, tuple[float, Row]] = {}
    for row, one in zip(rows, scored, strict=True):
        values = [one["rewards"][name] for name in best_of.weights]
        # A sample that lacks a reward is chosen only where all lack one; the first then.
        total = float("-inf")
        if None not in values:
            total = sum(weight * value for weight, value in zip(best_of.weights.values(), values, strict=True))
        if row["id"] not in best or total > best[row["id"]][0]:
            best[row["id"]] = (total, row)
    return [row for _, row in best.values()]
