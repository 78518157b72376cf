"""How a run went between start and end: stages, held-out figures on the way, the best checkpoint, roll-backs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from tersely.report.charts import Point, line_chart

_FIGURES: Sequence[tuple[str, str, dict[str, Any]]] = (
    ("within_5", "share within +-5 tokens", {"percent": True}),
    ("mean_abs_length_error", "mean absolute length error, tokens", {"unit": "tokens"}),
    ("rouge_l", "ROUGE-L", {}),
)


def course_section(report: Mapping[str, Any]) -> str:
    """The part of the page, or nothing for a run that had none of it.

    Args:
        report: What report.json holds.
    """
    parts = [
        _stages(report.get("stages") or []),
        _best(report.get("best")),
        _roll_backs(report.get("roll_backs") or []),
    ]
    parts.append(_during((report.get("held_out") or {}).get("during") or []))
    body = "".join(filter(None, parts))
    return f"<h2>On the way</h2>{body}" if body else ""


def _stages(stages: Sequence[Mapping[str, Any]]) -> str:
    rows = "".join(
        f"<tr><td>{_text(stage.get('name'))}</td><td>{_text(stage.get('first_step'))} to"
        f" {_text(stage.get('last_step'))}</td><td>{_weights(stage)}</td></tr>"
        for stage in stages
    )
    head = "<tr><th>stage</th><th>steps</th><th>reward weights</th></tr>"
    return f"<div class='wide'><table>{head}{rows}</table></div>" if rows else ""


def _weights(stage: Mapping[str, Any]) -> str:
    first, last = stage.get("first_weights") or {}, stage.get("last_weights") or {}
    return ", ".join(
        f"{_text(name)} {weight:g}" + ("" if last.get(name) == weight else f" &rarr; {last.get(name, 0):g}")
        for name, weight in first.items()
        if weight or last.get(name)
    )


def _best(best: Mapping[str, Any] | None) -> str:
    if not best:
        return ""
    value = best.get("value")
    shown = f"{value:.3f}" if isinstance(value, int | float) else "-"
    return (
        f"<p>Best checkpoint by {_text(best.get('figure'))} ({shown}): {_text(best.get('checkpoint'))}, after step"
        f" {_text(best.get('step'))}.</p>"
    )


def _roll_backs(roll_backs: Sequence[Mapping[str, Any]]) -> str:
    return "".join(
        f"<p>After step {_text(one.get('step'))} the run went back to the state after step {_text(one.get('to_step'))}"
        f" (version {_text(one.get('policy_version'))}): {_text(one.get('reason'))}.</p>"
        for one in roll_backs
    )


def _during(during: Sequence[Mapping[str, Any]]) -> str:
    charts = []
    for key, title, options in _FIGURES:
        for mode in ("greedy", "sampled"):
            points: list[Point] = [(one["step"], (one.get(mode) or {}).get(key)) for one in during]
            if any(value is not None for _, value in points):
                charts.append(line_chart(f"Held out, {mode}: {title}", points, **options))
    return f"<div class='grid'>{''.join(charts)}</div>" if charts else ""


def _text(value: object) -> str:
    return escape("" if value is None else str(value), quote=True)
