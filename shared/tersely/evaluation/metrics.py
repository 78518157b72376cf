"""What is measured on a summary, and how good each figure is when it is high."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tersely.errors import ConfigValue, DownloadFailed, PackageMissing, RewardFailed, RewardUnknown
from tersely.evaluation import WITHIN_TOKENS

Row = dict[str, Any]
Values = dict[str, float | None]
ScoreRows = Callable[..., list[dict[str, Any]]]

DISTINCT_WORDS = 1000
"""Words that corpus figures look at, as distinct-n falls with the amount of text."""
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Metric:
    """How a figure is shown.

    Attributes:
        name: Key in files.
        title: For people.
        better: Which way is better; None: neither as such.
        digits: After the point.
    """

    name: str
    title: str
    better: Literal["higher", "lower"] | None
    digits: int = 3


@dataclass(frozen=True, slots=True)
class _Scored:
    """A figure that a reward gives: `fallback` is taken where it can't be set up."""

    metric: Metric
    reward: str
    options: Mapping[str, object]
    fallback: str | None = None


LENGTH_METRICS = (
    Metric("tokens", "mean tokens", None, 1),
    Metric("abs_length_error", "absolute length error, tokens", "lower", 1),
    Metric("within_5", f"within +-{WITHIN_TOKENS} tokens", "higher", 2),
    Metric("stopped", "ended by itself", "higher", 2),
)
_REWARD_METRICS = (
    _Scored(Metric("rouge_1", "ROUGE-1", "higher"), "rouge_1", {}),
    _Scored(Metric("rouge_2", "ROUGE-2", "higher"), "rouge_2", {}),
    _Scored(Metric("rouge_l", "ROUGE-L", "higher"), "rouge_l", {}),
    _Scored(Metric("bleu", "BLEU", "higher"), "bleu", {}),
    _Scored(Metric("chrf", "chrF", "higher"), "chrf", {}),
    _Scored(Metric("meteor", "METEOR", "higher"), "meteor", {}, fallback="meteor_exact_stem"),
    _Scored(Metric("embedding_reference", "embedding, to reference", "higher"), "embedding", {"against": "reference"}),
    _Scored(Metric("embedding_document", "embedding, to document", "higher"), "embedding", {"against": "document"}),
    _Scored(Metric("coverage_facts", "facts kept, none invented", "higher"), "coverage_facts", {}),
    _Scored(Metric("copy_rate", "copied from the document", None), "copy_rate", {}),
    _Scored(Metric("repetition", "repetition (0: none)", "higher"), "repetition", {}),
)
JUDGE_AXES = ("faithfulness", "coverage", "conciseness", "clarity")
OWN_METRICS = (
    Metric("distinct_2", "distinct-2 within a summary", "higher"),
    Metric("composite", "composite quality", "higher"),
    Metric("composite_in_length", f"composite, 0 beyond +-{WITHIN_TOKENS} tokens", "higher"),
    Metric("composite_when_in_length", f"composite, only within +-{WITHIN_TOKENS} tokens", "higher"),
    Metric("composite_at_equal_length", "composite at equal length", "higher"),
)
_JUDGE_METRICS = (
    *(Metric(f"judge_{axis}", f"judge: {axis}", "higher") for axis in JUDGE_AXES),
    Metric("judge_composite", "judge: sum of the axes", "higher"),
    Metric("judge_passed", "judge: passed", "higher", 2),
)
KNOWN = {
    metric.name: metric
    for metric in (
        *LENGTH_METRICS,
        *(scored.metric for scored in _REWARD_METRICS),
        Metric("meteor_exact_stem", "METEOR without synonyms", "higher"),
        *_JUDGE_METRICS,
        *OWN_METRICS,
    )
}


def metric(name: str) -> Metric:
    """How to show a figure; one that is not built in is shown under its own name."""
    return KNOWN.get(name) or Metric(name, name, None)


@dataclass(frozen=True, slots=True)
class Measured:
    """Figures of many summaries.

    Attributes:
        values: One mapping per row.
        composite_of: The figures whose mean is the composite.
        left_out: Figures that can't be had here, with the reason.
    """

    values: list[Values]
    composite_of: tuple[str, ...]
    left_out: dict[str, str]


def measure(
    rows: Sequence[Row],
    score: ScoreRows,
    *,
    extra_rewards: Sequence[str] = (),
    judged: Sequence[Mapping[str, Any] | None] | None = None,
) -> Measured:
    """Computes all figures of all rows.

    The composite is, with a judge, the mean of its four axes; else that of ROUGE-L, chrF and METEOR. A summary that
    lacks one of them has none.

    Args:
        rows: `id`, `completion`, `completion_tokens`, `stopped`, `target_tokens`, `reference`, `document`.
        score: `score_rows` of the scorer.
        extra_rewards: Names of more rewards, with their default options.
        judged: The judge's result per row; None: nobody judged.

    Raises:
        RewardUnknown, RewardFailed, PackageMissing: A reward among `extra_rewards` can't be had.
    """
    values: list[Values] = [_lengths(row) for row in rows]
    left_out: dict[str, str] = {}
    present: list[str] = []
    for scored in _REWARD_METRICS:
        name = scored.metric.name
        try:
            found = _score(rows, score, scored.reward, scored.options)
        except (RewardFailed, RewardUnknown, PackageMissing, ConfigValue, DownloadFailed) as error:
            left_out[name] = error.message
            if scored.fallback is None:
                continue
            name = scored.fallback
            found = _score(rows, score, name, scored.options)
        present.append(name)
        _put(values, name, found)
    for name in extra_rewards:
        if name not in present:
            _put(values, name, _score(rows, score, name, {}))
    if judged is not None:
        for value, result in zip(values, judged, strict=True):
            value.update(_judge_values(result))
    meteor = "meteor" if "meteor" in present else "meteor_exact_stem"
    parts = tuple(f"judge_{axis}" for axis in JUDGE_AXES) if judged is not None else ("rouge_l", "chrf", meteor)
    for row, value in zip(rows, values, strict=True):
        known = [part for part in (value.get(name) for name in parts) if part is not None]
        composite = sum(known) / len(parts) if len(known) == len(parts) else None
        value["distinct_2"] = _distinct([_words(row["completion"])], 2)
        value["composite"] = composite
        value["composite_in_length"] = composite if composite is None or value["within_5"] else 0.0
        value["composite_when_in_length"] = composite if value["within_5"] else None
    return Measured(values, parts, left_out)


def corpus_figures(texts: Sequence[str]) -> dict[str, float | None]:
    """distinct-1 and distinct-2 (Li et al. 2016) over the first 1000 words of all texts together."""
    sample: list[list[str]] = []
    room = DISTINCT_WORDS
    for text in texts:
        sample.append(_words(text)[:room])
        room -= len(sample[-1])
    return {"distinct_1": _distinct(sample, 1), "distinct_2": _distinct(sample, 2)}


def _lengths(row: Row) -> Values:
    error = abs(row["completion_tokens"] - row["target_tokens"])
    return {
        "tokens": float(row["completion_tokens"]),
        "abs_length_error": float(error),
        "within_5": float(row["stopped"] and error <= WITHIN_TOKENS),
        "stopped": float(row["stopped"]),
    }


def _score(rows: Sequence[Row], score: ScoreRows, reward: str, options: Mapping[str, object]) -> list[float | None]:
    scored = score(rows, [reward], options={reward: dict(options)} if options else None)
    return [one["rewards"][reward] for one in scored]


def _put(values: Sequence[Values], name: str, found: Sequence[float | None]) -> None:
    for value, one in zip(values, found, strict=True):
        value[name] = one


def _judge_values(result: Mapping[str, Any] | None) -> Values:
    axes = (result or {}).get("axes") or {}
    scores = {f"judge_{axis}": (axes.get(axis) or {}).get("score") for axis in JUDGE_AXES}
    passed = (result or {}).get("passed")
    return {
        **scores,
        "judge_composite": (result or {}).get("composite"),
        "judge_passed": None if passed is None else float(passed),
    }


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _distinct(sample: Sequence[Sequence[str]], n: int) -> float | None:
    grams = [gram for words in sample for gram in zip(*(words[i:] for i in range(n)), strict=False)]
    return len(set(grams)) / len(grams) if grams else None
