"""report.html: one self-contained page. All text that comes from a run is escaped, completions are hostile."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from tersely.evaluation import WITHIN_TOKENS
from tersely.queue.connect import without_password
from tersely.report.alarms import alarm_section, alarm_steps
from tersely.report.charts import Point, line_chart
from tersely.report.course import course_section
from tersely.report.style import CSS
from tersely.report.table import held_out_rows
from tersely.supervise.run_dir import RunDir, read_json
from tersely.telemetry.atomic import write_atomic
from tersely.telemetry.events import read_events
from tersely.view import figures

_BOOKS = ("issued", "trained", "stale", "no_signal", "quarantined", "in_flight")
_HEALTH: Sequence[tuple[str, str, dict[str, Any]]] = (
    ("Entropy, nats a token: near 0, samples are all alike", "entropy", {"unit": "nats"}),
    ("Spread of lengths within a prompt, tokens", "length_std", {"unit": "tokens"}),
    ("Cut off at the limit", "truncated", {"percent": True}),
    ("Groups without signal", "zero_variance", {"percent": True}),
    ("Different word pairs (distinct-2): falls when texts become alike", "distinct_2", {"percent": True}),
    ("Overlap with completions of other prompts", "self_overlap", {"percent": True}),
    ("Mismatch of learner and sampler, nats a token", "mismatch", {"unit": "nats"}),
    ("Gradient norm before scaling", "grad_norm", {}),
)
_HEALTH_NOTE = (
    "Whether there is anything left to learn from. The loss is not shown: it swings around 0 and says nothing about"
    " progress."
)
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def write_report(run_dir: RunDir) -> Path:
    """Renders the page of a run that has a report.json, and returns its path."""
    report = read_json(run_dir.report) or {}
    recipe = read_json(run_dir.recipe) or {}
    write_atomic(run_dir.report_html, render_report(report, list(read_events(run_dir.events)), recipe))
    return run_dir.report_html


def render_report(
    report: Mapping[str, Any], events: Sequence[Mapping[str, Any]] = (), recipe: Mapping[str, Any] | None = None
) -> str:
    """The page.

    Args:
        report: What report.json holds; parts that are missing are left out.
        events: The event log; its steps are drawn, or the report's `curve` where it has none; its alarms are shown, its
            deaths counted.
        recipe: The resolved recipe.
    """
    target, targets = report.get("target_tokens"), report.get("target_range")
    length = target if not targets else f"{targets[0]} to {targets[1]}"
    curve = [event for event in events if event.get("kind") == "step_finished"] or report.get("curve") or []
    body = [
        _headline(report, length),
        alarm_section(events),
        _table(report),
        _examples(report.get("examples") or [], target),
        course_section(report),
        _charts(curve, target, alarm_steps(events)),
        _books(report, events),
        _recipe(recipe or report.get("recipe") or {}),
    ]
    title = ": ".join(["tersely", *([f"{length} tokens"] if length else [])])
    if report.get("run_id"):
        title += f", run {report['run_id']}"
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{escape(title)}</title><style>{CSS}</style></head><body>\n"
        + "\n".join(filter(None, body))
        + "\n</body></html>\n"
    )


def _headline(report: Mapping[str, Any], target: object) -> str:
    held_out = report.get("held_out") or {}
    before = ((held_out.get("before") or {}).get("sampled") or {}).get("mean_abs_length_error")
    after = ((held_out.get("after") or {}).get("sampled") or {}).get("mean_abs_length_error")
    head = f"Summaries of {_text(target)} tokens"
    if isinstance(before, int | float) and isinstance(after, int | float) and before > 0:
        share = (after - before) / before
        way = "lower" if share <= 0 else "higher"
        head += f": length error {before:.1f} &rarr; {after:.1f} tokens, {abs(share) * 100:.0f} % {way}"
    facts = [f"{_text(report.get('steps', '-'))} steps in {escape(figures.duration(report.get('seconds')))}"]
    if report.get("seconds_to_first_step") is not None:
        facts.append(f"first step after {escape(figures.duration(report['seconds_to_first_step']))}")
    if report.get("max_completion_tokens") is not None:
        facts.append(f"limit {_text(report['max_completion_tokens'])} tokens")
    if report.get("run_id"):
        facts.append(f"run {_text(report['run_id'])}")
    return f"<h1>{head}</h1><p class='muted'>{' &middot; '.join(facts)}</p>"


def _table(report: Mapping[str, Any]) -> str:
    rows = held_out_rows(report)
    if not rows:
        return ""
    count = ((((report.get("held_out") or {}).get("after")) or {}).get("sampled") or {}).get("n")
    note = f"{_text(count)} held-out prompts, same prompt and same limit before and after." if count else ""
    cells, mode = [], None
    for row in rows:
        first = " class='first'" if mode not in (None, row.mode) else ""
        mode = row.mode
        change = row.change.replace("95 %", "95\u00a0%").replace(" to ", "\u00a0to\u00a0")  # breaks between them only
        values = (f"{row.figure}, {row.mode}", row.before, row.after, change)
        cells.append(f"<tr{first}>{''.join(f'<td>{escape(value)}</td>' for value in values)}</tr>")
    head = "<tr><th>figure</th><th>before</th><th>after</th><th>change</th></tr>"
    return f"<h2>Held out</h2><p class='muted'>{note}</p><div class='wide'><table>{head}{''.join(cells)}</table></div>"


def _examples(examples: Sequence[Mapping[str, Any]], target: object) -> str:
    if not examples:
        return ""
    parts = ["<h2>Before and after</h2>"]
    for example in examples:
        own = example.get("target_tokens", target)
        pair = "".join(
            f"<div class='card'><span class='muted'>{name} &middot; </span>"
            f"{_length(example.get(f'{name}_tokens'), own)}{_completion(example.get(name))}</div>"
            for name in ("before", "after")
        )
        parts.append(
            f"<section class='example'><p class='muted'>{_text(example.get('prompt_id'))}</p>"
            f"<div class='pair'>{pair}</div><details><summary>reference and document</summary>"
            f"<p><b>Reference.</b> {_text(example.get('reference'))}</p>"
            f"<blockquote>{_text(example.get('document'))}</blockquote></details></section>"
        )
    return "".join(parts)


def _completion(text: object) -> str:
    shown = _text(text)
    return f"<p>{shown}</p>" if shown.strip() else "<p class='muted'>(no text)</p>"


def _length(tokens: object, target: object) -> str:
    if not isinstance(tokens, int | float):
        return ""
    near = isinstance(target, int | float) and abs(tokens - target) <= WITHIN_TOKENS
    return f"<span class='{'target' if near else 'off'}'>{tokens:g} tokens</span>"


def _charts(curve: Sequence[Mapping[str, Any]], target: object, marks: Sequence[float]) -> str:
    rows = [row for row in curve if isinstance(row.get("step"), int | float)]
    if not rows:
        return ""
    names = list(dict.fromkeys(name for row in rows for name in (row.get("rewards") or {})))
    band = (target - WITHIN_TOKENS, target + WITHIN_TOKENS) if isinstance(target, int | float) else None

    def chart(title: str, key: str, **options: Any) -> str:
        return line_chart(title, _points(rows, key), marks=marks, **options)

    learned = [
        chart(f"Mean tokens{'; shaded: target +-5' if band else ''}", "mean_tokens", band=band, unit="tokens"),
        chart("Mean absolute length error, tokens", "mean_abs_length_error", unit="tokens"),
        chart("Share within +-5 tokens", "within_5", percent=True),
        *(
            line_chart(
                f"Reward {name}",
                [(row["step"], _value((row.get("rewards") or {}).get(name))) for row in rows],
                marks=marks,
            )
            for name in names
        ),
    ]
    health = [chart(title, key, **options) for title, key, options in _HEALTH if any(key in row for row in rows)]
    note = "Means of each step's sampled batch" + ("; dashed: an alarm." if marks else ".")
    parts = [f"<h2>Training</h2><p class='muted'>{note}</p><div class='grid'>{''.join(learned)}</div>"]
    if health:
        parts.append(f"<h2>Health</h2><p class='muted'>{_HEALTH_NOTE}</p><div class='grid'>{''.join(health)}</div>")
    return "".join(parts)


def _points(rows: Sequence[Mapping[str, Any]], key: str) -> list[Point]:
    return [(row["step"], _value(row.get(key))) for row in rows]


def _value(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _books(report: Mapping[str, Any], events: Sequence[Mapping[str, Any]]) -> str:
    groups = report.get("groups") or {}
    if not groups:
        return ""
    head = "".join(f"<th>{name.replace('_', ' ')}</th>" for name in _BOOKS)
    cells = "".join(f"<td>{_text(groups.get(name, '-'))}</td>" for name in _BOOKS)
    deaths = sum(event.get("kind") == "service_died" for event in events)
    note = f"<p class='muted'>Services that died and were restarted: {deaths}.</p>" if deaths else ""
    hashes = "".join(
        f"<p class='muted'>{name} weights {_text(report.get(f'{name}_weights_sha256', '-'))}</p>"
        for name in ("initial", "final")
    )
    return f"<h2>Groups</h2><div class='wide'><table><tr>{head}</tr><tr>{cells}</tr></table></div>{note}{hashes}"


def _recipe(recipe: Mapping[str, Any]) -> str:
    if not recipe:
        return ""
    queue = recipe.get("queue") or {}
    if queue.get("url"):
        recipe = {**recipe, "queue": {**queue, "url": without_password(str(queue["url"]))}}
    shown = _text(json.dumps(recipe, indent=2, ensure_ascii=False))
    return f"<h2>Recipe</h2><details><summary>all settings</summary><pre>{shown}</pre></details>"


def _text(value: object) -> str:
    return escape("" if value is None else str(value), quote=True)
