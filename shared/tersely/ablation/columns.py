"""What the tables of the two reports show, so that they show the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tersely.evaluation.metrics import metric
from tersely.evaluation.table import interval, number, p_value

COLUMNS = (
    "tokens",
    "abs_length_error",
    "within_5",
    "stopped",
    "composite_in_length",
    "composite",
    "rouge_l",
    "meteor",
    "meteor_exact_stem",
    "bleu",
    "chrf",
    "embedding_reference",
    "coverage_facts",
    "copy_rate",
    "repetition",
)
NOTE = (
    "Means over prompts, each averaged over the seeds first; in brackets the 95 % interval over prompts (BCa"
    " bootstrap). It says nothing about other seeds: those that were run are shown one by one."
)
TESTS_NOTE = (
    "b minus a, prompt by prompt, each averaged over the seeds that both have. p: paired t-test, corrected by Holm"
    " over all {count} comparisons here. Seeds: the difference in each seed alone; where they disagree in sign, the"
    " result is about these seeds, whatever its p. Detectable: the smallest true difference that the corrected test"
    " finds 8 times in 10."
)


@dataclass(frozen=True, slots=True)
class TestRow:
    """One comparison as text."""

    a: str
    b: str
    figure: str
    difference: str
    interval: str
    p: str
    p_wilcoxon: str
    p_holm: str
    seeds: str
    detectable: str
    found: bool


def columns(report: Mapping[str, Any], mode: str) -> list[str]:
    """The figures that some arm has, of those that are shown."""
    have = {name for arm in report["arms"] for name in arm[mode]["metrics"]}
    return [name for name in COLUMNS if name in have]


def short_title(name: str) -> str:
    """A column's head."""
    heads = {
        "tokens": "tokens",
        "abs_length_error": "|error|",
        "within_5": "within ±5",
        "stopped": "stopped",
        "composite_in_length": "composite, 0 beyond ±5",
        "composite": "composite",
        "meteor_exact_stem": "METEOR (stems)",
        "embedding_reference": "embedding",
        "coverage_facts": "facts",
        "copy_rate": "copied",
    }
    return heads.get(name) or metric(name).title


def mean_text(figure: Mapping[str, Any] | None, name: str) -> str:
    """`63.7`, or a dash."""
    return number(None if figure is None else figure["mean"], metric(name).digits)


def interval_text(figure: Mapping[str, Any] | None, name: str) -> str:
    """`(62.1 to 65.0)`, or nothing."""
    low, high = (figure or {}).get("ci95") or (None, None)
    digits = metric(name).digits
    return "" if low is None or high is None else f"({low:.{digits}f} to {high:.{digits}f})"


def seeds_text(figure: Mapping[str, Any] | None, name: str) -> str:
    """`62.0, 65.4`: one mean per seed."""
    by_seed = (figure or {}).get("by_seed") or {}
    return ", ".join(number(value, metric(name).digits) for value in by_seed.values())


def test_rows(report: Mapping[str, Any]) -> list[TestRow]:
    """All comparisons, in the order of the report."""
    rows = []
    for pair in report["comparisons"]:
        digits = metric(pair["metric"]).digits
        by_seed = [value for value in pair["by_seed"].values() if value is not None]
        agree = len({value > 0 for value in by_seed}) == 1
        seeds = ", ".join(number(value, digits, sign=True) for value in by_seed)
        rows.append(
            TestRow(
                a=pair["a"],
                b=pair["b"],
                figure=metric(pair["metric"]).title + (" (extrapolated)" if pair.get("extrapolated") else ""),
                difference=number(pair["mean_difference"], digits, sign=True),
                interval=interval(pair["ci95"], digits),
                p=p_value(pair["p"]),
                p_wilcoxon=p_value(pair["p_wilcoxon"]),
                p_holm=p_value(pair["p_holm"]),
                seeds=seeds if agree or len(by_seed) < 2 else f"{seeds} (disagree)",
                detectable=number(pair["minimum_detectable_holm"], digits),
                found=pair["p_holm"] is not None and pair["p_holm"] < report["alpha"],
            )
        )
    return rows


def summary_lines(report: Mapping[str, Any]) -> list[str]:
    """How it was made, and what the tests found, in sentences."""
    arms, tests = report["arms"], test_rows(report)
    found = sum(row.found for row in tests)
    target = report["target_tokens"] or " to ".join(map(str, report["target_range"] or ("-",)))
    lines = [
        f"{len(arms)} arms on the seeds {_listed(report['seeds'])}: {report['model']}, {report['data']}, target"
        f" {target} tokens. Every run has {report['steps']} steps of equal size"
        f" ({report['completions_per_run']} completions);"
        f" {report['prompts']} prompts of the split {report['split']} measure them all.",
        f"{found} of {len(tests)} comparisons ({report['tested_mode']} summaries) are below {report['alpha']:g} after"
        " the correction.",
    ]
    failed = [cell["name"] for cell in report["cells"] if cell["failure"]]
    if failed:
        lines.append(f"Not complete: {len(failed)} of {len(report['cells'])} runs failed ({', '.join(failed)}).")
    if report["composite_of"]:
        lines.append(f"Composite: the mean of {_listed(metric(name).title for name in report['composite_of'])}.")
    lines += [f"Left out: {name}: {reason}" for name, reason in report["left_out"].items()]
    return lines


def _listed(values: Iterable[object]) -> str:
    return ", ".join(str(value) for value in values)
