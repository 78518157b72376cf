"""Evaluations and comparisons as plain text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tersely.evaluation.metrics import metric


def evaluation_lines(evaluation: Mapping[str, Any]) -> list[str]:
    """One row per figure, one column per mode and baseline: mean, and for the model's modes the 95 % interval."""
    arms = {"greedy": evaluation["greedy"], "sampled": evaluation["sampled"], **evaluation["baselines"]}
    names = list(dict.fromkeys(name for arm in arms.values() for name in arm["metrics"]))
    head = ["figure", *arms]
    rows = [
        [metric(name).title, *(_cell(arm["metrics"].get(name), name, mode in MODES) for mode, arm in arms.items())]
        for name in names
    ]
    prompts = evaluation["greedy"]["metrics"]["tokens"]["n"]
    target = evaluation.get("target_tokens") or " to ".join(map(str, evaluation.get("target_range") or ()))
    lines = [
        f"{evaluation['model']}: {prompts} prompts of {evaluation['data']} {evaluation['split']}",
        f"target {target} tokens, seed {evaluation['seed']}, temperature {evaluation['temperature']:g} when sampled",
        f"version {_shown(evaluation.get('policy_version'))}, weights {evaluation['weights_sha256']}",
        f"composite: mean of {', '.join(evaluation['composite_of'])}",
        *(f"left out: {name}: {reason}" for name, reason in evaluation["left_out"].items()),
        "",
    ]
    return [*lines, *aligned([head, *rows])]


MODES = ("greedy", "sampled")


def comparison_lines(comparison: Mapping[str, Any]) -> list[str]:
    """One row per comparison."""
    head = ["figure", "mode", "b - a", "95 % interval", "p", "p (Wilcoxon)", "p (Holm)", "n", "detectable"]
    lines: list[str] = []
    pairs: dict[tuple[str, str], list[list[str]]] = {}
    for pair in comparison["pairs"]:
        digits = metric(pair["metric"]).digits
        title = metric(pair["metric"]).title + (" (extrapolated)" if pair.get("extrapolated") else "")
        pairs.setdefault((pair["a"], pair["b"]), []).append(
            [
                title,
                pair["mode"],
                number(pair["mean_difference"], digits, sign=True),
                interval(pair["ci95"], digits),
                p_value(pair["p"]),
                p_value(pair["p_wilcoxon"]),
                p_value(pair["p_holm"])
                + ("*" if pair["p_holm"] is not None and pair["p_holm"] < comparison["alpha"] else ""),
                str(pair["n"]),
                number(pair["minimum_detectable"], digits),
            ]
        )
    for (a, b), rows in pairs.items():
        lines += [f"a: {a}", f"b: {b}", *aligned([head, *rows]), ""]
    count = comparison["comparisons"]
    lines.append(f"p (Holm): corrected over all {count} comparisons here; *: below {comparison['alpha']:g}")
    lines.append("detectable: smallest true difference that one uncorrected test finds 8 times in 10")
    return [*lines, *comparison["remarks"]]


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns padded to the same width, the first to the left."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def number(value: float | None, digits: int, *, sign: bool = False) -> str:
    """A figure for people; a dash where there is none."""
    if value is None:
        return "-"
    return f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"


def interval(found: Sequence[float | None], digits: int) -> str:
    """`low to high`, or a dash."""
    low, high = found
    return "-" if low is None or high is None else f"{low:+.{digits}f} to {high:+.{digits}f}"


def is_found(pair: Mapping[str, Any], alpha: float) -> bool:
    """Whether a comparison is below the level after its correction."""
    return pair["p_holm"] is not None and bool(pair["p_holm"] < alpha)


def p_value(value: float | None) -> str:
    """Three digits, small ones as a bound."""
    if value is None:
        return "-"
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _cell(figure: Mapping[str, Any] | None, name: str, with_interval: bool) -> str:
    if figure is None or figure["mean"] is None:
        return "-"
    digits = metric(name).digits
    text = f"{figure['mean']:.{digits}f}"
    low, high = figure["ci95"]
    if with_interval and low is not None and high is not None:
        text += f" ({low:.{digits}f} to {high:.{digits}f})"
    return text


def _shown(value: object) -> str:
    return "-" if value is None else str(value)
