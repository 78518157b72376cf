"""The held-out figures before and after, as rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tersely.view import figures

MODES = ("sampled", "greedy")
_FIGURES = (
    ("mean tokens", "mean_tokens", 1, False),
    ("mean absolute length error, tokens", "mean_abs_length_error", 1, False),
    ("share within +-5 tokens", "within_5", 0, True),
    ("stopped by itself", "stopped", 0, True),
    ("ROUGE-L", "rouge_l", 3, False),
)


@dataclass(frozen=True, slots=True)
class Row:
    """One figure: `change` has a paired 95 % interval where there is one."""

    figure: str
    mode: str
    before: str
    after: str
    change: str


def held_out_rows(report: Mapping[str, Any]) -> list[Row]:
    """Rows of the before/after table; empty when nothing was evaluated."""
    held_out = report.get("held_out") or {}
    before, after = held_out.get("before") or {}, held_out.get("after") or {}
    rows = []
    for mode in MODES:
        early, late = before.get(mode) or {}, after.get(mode) or {}
        if not early and not late:
            continue
        paired = (held_out.get("paired") or {}).get(mode) or {}
        for label, key, digits, share in _FIGURES:
            show = figures.percent if share else lambda value, digits=digits: figures.number(value, digits)
            interval = paired.get(f"{key.removeprefix('mean_')}_difference")
            change = _change(early.get(key), late.get(key), interval, digits, share=share)
            rows.append(Row(label, mode, show(early.get(key)), show(late.get(key)), change))
    return rows


def held_out_lines(report: Mapping[str, Any]) -> list[str]:
    """The table as plain text."""
    rows = held_out_rows(report)
    if not rows:
        return []
    head = Row("held-out prompts", "", "before", "after", "change")
    widths = [max(len(getattr(row, name)) for row in (head, *rows)) for name in ("figure", "mode", "before", "after")]
    return [
        f"{row.figure:<{widths[0]}}  {row.mode:<{widths[1]}}  {row.before:>{widths[2]}}  {row.after:>{widths[3]}}"
        f"  {row.change}"
        for row in (head, *rows)
    ]


def _change(before: object, after: object, interval: object, digits: int, *, share: bool) -> str:
    if isinstance(interval, Mapping) and isinstance(interval.get("mean"), int | float):
        low, high = interval.get("low"), interval.get("high")
        text = f"{interval['mean']:+.{digits}f}"
        if isinstance(low, int | float) and isinstance(high, int | float):
            text += f" (95 % {low:+.{digits}f} to {high:+.{digits}f})"
        return text
    if not isinstance(before, int | float) or not isinstance(after, int | float):
        return "-"
    return f"{100 * (after - before):+.0f} points" if share else f"{after - before:+.{digits}f}"
