"""report.md: tables and examples for a repository or an issue."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from tersely.ablation.columns import (
    NOTE,
    TESTS_NOTE,
    columns,
    interval_text,
    mean_text,
    seeds_text,
    short_title,
    summary_lines,
    test_rows,
)

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|#])")


def render_markdown(report: Mapping[str, Any]) -> str:
    """The whole report; text of models and data is escaped."""
    parts = [f"# Ablation {_text(report['file'])}", *(_text(line) for line in summary_lines(report))]
    for mode in ("sampled", "greedy"):
        parts += [f"## Held out, {mode}", _text(NOTE), _arms(report, mode)]
    parts += ["## Comparisons", _text(TESTS_NOTE.format(count=len(report["comparisons"]))), _tests(report)]
    if report["baselines"]:
        parts += ["## Without training", _baselines(report)]
    parts += ["## Runs", _runs(report)]
    if report["examples"]:
        parts += ["## Summaries", *(_example(one) for one in report["examples"])]
    return "\n\n".join(parts) + "\n"


def _arms(report: Mapping[str, Any], mode: str) -> str:
    names = columns(report, mode)
    rows = []
    for arm in report["arms"]:
        cells = [arm["arm"], str(len(arm["seeds"]))]
        for name in names:
            figure = arm[mode]["metrics"].get(name)
            text = f"{mean_text(figure, name)} {interval_text(figure, name)}".strip()
            seeds = seeds_text(figure, name) if len(arm["seeds"]) > 1 else ""
            cells.append(f"{text} [{seeds}]" if seeds else text)
        rows.append(cells)
    return _table(["arm", "seeds", *(f"{short_title(name)} [by seed]" for name in names)], rows)


def _baselines(report: Mapping[str, Any]) -> str:
    names = columns(report, "greedy")
    rows = [[one["arm"], *(mean_text(one["metrics"].get(name), name) for name in names)] for one in report["baselines"]]
    return _table(["baseline", *(short_title(name) for name in names)], rows)


def _tests(report: Mapping[str, Any]) -> str:
    head = ["a", "b", "figure", "b - a", "95 % interval", "p", "p (Wilcoxon)", "p (Holm)", "seeds", "detectable"]
    rows = [
        [
            row.a,
            row.b,
            row.figure,
            row.difference,
            row.interval,
            row.p,
            row.p_wilcoxon,
            f"{row.p_holm}{' *' if row.found else ''}",
            row.seeds,
            row.detectable,
        ]
        for row in test_rows(report)
    ]
    return _table(head, rows) if rows else "No two arms have a seed in common."


def _runs(report: Mapping[str, Any]) -> str:
    rows = [
        [
            cell["name"],
            *("-" if cell[key] is None else f"{cell[key]:.0f}" for key in ("steps", "groups_trained", "seconds")),
            str(cell["final_weights_sha256"] or "-")[:12],
            cell["failure"] or "",
        ]
        for cell in report["cells"]
    ]
    return _table(["run", "steps", "groups trained", "seconds", "weights", "failure"], rows)


def _example(example: Mapping[str, Any]) -> str:
    rows = [
        [one["arm"], f"{one['tokens']}{'' if one['stopped'] else ' (cut)'}", one["completion"] or "(no text)"]
        for one in example["summaries"]
    ]
    about = f"Target {example['target_tokens']} tokens. Reference: {_text(example['reference'])}"
    head = f"### {_text(example['id'])}\n\n{about}"
    return f"{head}\n\n{_table(['arm, greedy', 'tokens', 'summary'], rows)}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    shown = ["| " + " | ".join(_text(cell) for cell in head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*shown, *("| " + " | ".join(_text(cell) for cell in row) + " |" for row in rows)])


def _text(text: object) -> str:
    return _SPECIAL.sub(r"\\\1", " ".join(str(text).split()))
