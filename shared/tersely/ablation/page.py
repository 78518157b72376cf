"""report.html: one self-contained page. All text that comes from data and models is escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
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
from tersely.evaluation import WITHIN_TOKENS
from tersely.evaluation.metrics import metric
from tersely.report.pictures import PICTURES_CSS, Dot, Spot, dots, histogram, histogram_shares, scatter
from tersely.report.style import CSS
from tersely.view.figures import duration

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_CSS = """
td .muted, td small { display: block; white-space: nowrap; } small { font-size: .78rem; color: var(--muted); }
.arms td:first-child, .arms th:first-child { position: sticky; left: 0; background: var(--page); }
.arms td { white-space: nowrap; } tr.found td { font-weight: 600; } .left td { text-align: left; white-space: normal; }
.tests td:nth-child(-n+3), .tests th:nth-child(-n+3) { text-align: left; white-space: nowrap; }
.small { grid-template-columns: repeat(auto-fit, minmax(min(240px, 100%), 1fr)); }
.summaries th { text-align: left; } .summaries td:nth-child(2) { width: 1%; }
.summaries td:nth-child(3) { text-align: left; white-space: pre-wrap; overflow-wrap: anywhere; min-width: 14rem; }
"""
_BINS = 24
_DOTS = ("abs_length_error", "within_5", "composite", "rouge_l", "meteor", "meteor_exact_stem", "bleu", "chrf")


def render_page(report: Mapping[str, Any]) -> str:
    """The page of a report.json."""
    title = f"Ablation {report['file']}"
    body = [
        f"<h1>{_text(title)}</h1>",
        *(f"<p>{_text(line)}</p>" for line in summary_lines(report)),
        _pictures(report),
        *(_arms(report, mode) for mode in ("sampled", "greedy")),
        _tests(report),
        _lengths(report),
        _baselines(report),
        _examples(report),
        _runs(report),
    ]
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>tersely: {_text(title)}</title><style>{CSS}{PICTURES_CSS}{_CSS}</style></head><body>\n"
        + "\n".join(filter(None, body))
        + "\n</body></html>\n"
    )


def _pictures(report: Mapping[str, Any]) -> str:
    arms, mode = report["arms"], report["tested_mode"]
    if not arms:
        return ""
    spots = []
    for arm in arms:
        x, y = (arm[mode]["metrics"].get(name) or {} for name in ("abs_length_error", "composite"))
        if x.get("mean") is None or y.get("mean") is None:
            continue
        spots.append(Spot(arm["arm"], x["mean"], y["mean"]))
        for seed, value in x["by_seed"].items():
            other = y["by_seed"].get(seed)
            if len(arm["seeds"]) > 1 and value is not None and other is not None:
                spots.append(Spot(f"{arm['arm']}, seed {seed}", value, other, strong=False))
    figures = [
        scatter(
            "Quality against length error: up and to the left is better; faint: single seeds",
            spots,
            x_name="mean absolute length error, tokens",
            y_name="composite",
            band=(0, WITHIN_TOKENS),
        )
    ]
    shown = [name for name in _DOTS if any(name in arm[mode]["metrics"] for arm in arms)]
    figures += [dots(_dots_title(name), _dots(arms, mode, name), digits=metric(name).digits) for name in shown]
    note = f"{mode.capitalize()} summaries of the held-out prompts; bars are 95 % intervals, faint dots single seeds."
    return f"<h2>At a glance</h2><p class='muted'>{note}</p><div class='grid'>{''.join(figures)}</div>"


def _dots_title(name: str) -> str:
    better = metric(name).better
    return metric(name).title + (f" ({better} is better)" if better else "")


def _dots(arms: Sequence[Mapping[str, Any]], mode: str, name: str) -> list[Dot]:
    rows = []
    for arm in arms:
        figure = arm[mode]["metrics"].get(name) or {"mean": None, "ci95": (None, None), "by_seed": {}}
        single = [value for value in figure["by_seed"].values() if value is not None]
        low, high = figure["ci95"]
        rows.append(Dot(arm["arm"], figure["mean"], low, high, tuple(single) if len(single) > 1 else ()))
    return rows


def _arms(report: Mapping[str, Any], mode: str) -> str:
    if not report["arms"]:
        return ""
    names = columns(report, mode)
    head = "".join(f"<th>{_text(short_title(name))}</th>" for name in names)
    rows = []
    for arm in report["arms"]:
        cells = []
        for name in names:
            figure = arm[mode]["metrics"].get(name)
            below = [interval_text(figure, name)]
            if len(arm["seeds"]) > 1:
                below.append(seeds_text(figure, name))
            lines = "".join(f"<small>{_text(line)}</small>" for line in below if line)
            cells.append(f"<td>{_text(mean_text(figure, name))}{lines}</td>")
        rows.append(f"<tr><td>{_text(arm['arm'])}<small>{_seeds(arm['seeds'])}</small></td>{''.join(cells)}</tr>")
    table = f"<table class='arms'><tr><th>arm</th>{head}</tr>{''.join(rows)}</table>"
    note = f"{NOTE} Under each mean: its interval, then the mean of each seed."
    return f"<h2>Held out, {mode}</h2><p class='muted'>{_text(note)}</p><div class='wide'>{table}</div>"


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def _tests(report: Mapping[str, Any]) -> str:
    rows = test_rows(report)
    if not rows:
        return ""
    head = "<tr><th>a</th><th>b</th><th>figure</th><th>b &minus; a</th><th>95 % interval</th><th>p</th>"
    head += "<th>p (Wilcoxon)</th><th>p (Holm)</th><th>seeds</th><th>detectable</th></tr>"

    def line(row: Any) -> str:
        words = (row.a, row.b, row.figure, row.difference, row.interval, row.p, row.p_wilcoxon, row.p_holm)
        cells = "".join(f"<td>{_text(word)}</td>" for word in (*words, row.seeds, row.detectable))
        return f"<tr{' class=found' if row.found else ''}>{cells}</tr>"

    def table(some: Sequence[Any]) -> str:
        return f"<div class='wide'><table class='tests'>{head}{''.join(map(line, some))}</table></div>"

    found = [row for row in rows if row.found]
    body = table(found) if found else "<p>No comparison is below the level after the correction.</p>"
    rest = f"<details><summary>all {len(rows)} comparisons</summary>{table(rows)}</details>"
    note = TESTS_NOTE.format(count=len(rows))
    return f"<h2>Tests</h2><p class='muted'>{_text(note)}</p>{body}{rest}"


def _lengths(report: Mapping[str, Any]) -> str:
    arms, mode = report["arms"], report["tested_mode"]
    values = [tokens for arm in arms for tokens in arm[mode]["lengths"]]
    if not values:
        return ""
    target = report["target_tokens"]
    band = None if target is None else (target - WITHIN_TOKENS, target + WITHIN_TOKENS)
    bounds = (0.0, float(max(*values, report["max_completion_tokens"])))
    most = max(max(histogram_shares(arm[mode]["lengths"], bounds, _BINS)[0]) for arm in arms)
    pictures = [
        histogram(arm["arm"], arm[mode]["lengths"], bounds=bounds, bins=_BINS, band=band, most=most, unit="tokens")
        for arm in arms
    ]
    shaded = f" Shaded: the target &plusmn;{WITHIN_TOKENS}." if band else ""
    note = f"Tokens of each {mode} summary, all seeds; the last bar holds what was cut off at the limit.{shaded}"
    return f"<h2>Lengths</h2><p class='muted'>{note}</p><div class='grid small'>{''.join(pictures)}</div>"


def _baselines(report: Mapping[str, Any]) -> str:
    if not report["baselines"]:
        return ""
    names = columns(report, "greedy")
    head = "".join(f"<th>{_text(short_title(name))}</th>" for name in names)
    rows = ""
    for one in report["baselines"]:
        cells = "".join(
            f"<td>{_text(mean_text(one['metrics'].get(name), name))}"
            f"<small>{_text(interval_text(one['metrics'].get(name), name))}</small></td>"
            for name in names
        )
        rows += f"<tr><td>{_text(one['arm'])}</td>{cells}</tr>"
    note = "The same prompts without training: the base model with the length in its prompt, cut at the target, the"
    note += " best of several samples by the length reward, and the first sentences of the document."
    table = f"<table class='arms'><tr><th>baseline</th>{head}</tr>{rows}</table>"
    return f"<h2>Without training</h2><p class='muted'>{note}</p><div class='wide'>{table}</div>"


def _examples(report: Mapping[str, Any]) -> str:
    parts = []
    for example in report["examples"]:
        rows = "".join(_summary(one, example["target_tokens"]) for one in example["summaries"])
        table = f"<table class='summaries'><tr><th>arm</th><th>tokens</th><th>greedy summary</th></tr>{rows}</table>"
        parts.append(
            f"<section class='example'><p class='muted'>{_text(example['id'])}, target"
            f" {_text(example['target_tokens'])} tokens</p><p><b>Reference.</b> {_text(example['reference'])}</p>"
            f"<div class='wide'>{table}</div><details><summary>document</summary>"
            f"<blockquote>{_text(example['document'])}</blockquote></details></section>"
        )
    return f"<h2>Summaries</h2>{''.join(parts)}" if parts else ""


def _summary(one: Mapping[str, Any], target: int) -> str:
    near = one["stopped"] and abs(one["tokens"] - target) <= WITHIN_TOKENS
    cut = "" if one["stopped"] else " (cut)"
    length = f"<span class='{'target' if near else 'off'}'>{one['tokens']}{cut}</span>"
    text = _text(one["completion"])
    shown = text if text.strip() else "<span class='muted'>(no text)</span>"
    return f"<tr><td>{_text(one['arm'])}</td><td>{length}</td><td>{shown}</td></tr>"


def _runs(report: Mapping[str, Any]) -> str:
    rows = ""
    for cell in report["cells"]:
        words = (cell["name"], cell["steps"], cell["groups_trained"], duration(cell["seconds"]))
        cells = "".join(f"<td>{_text('-' if word is None else word)}</td>" for word in words)
        weights = f"<td><code>{_text((cell['final_weights_sha256'] or '-')[:12])}</code></td>"
        failure = f"<td class='off'>{_text(cell['failure'])}</td>" if cell["failure"] else "<td></td>"
        rows += f"<tr>{cells}{weights}{failure}</tr>"
    head = "<tr><th>run</th><th>steps</th><th>groups trained</th><th>time</th><th>weights</th><th>failure</th></tr>"
    table = f"<div class='wide'><table>{head}{rows}</table></div>"
    return f"<h2>Runs</h2><details><summary>all {len(report['cells'])} runs</summary>{table}</details>"


def _text(value: object) -> str:
    return escape("" if value is None else str(value), quote=True)
