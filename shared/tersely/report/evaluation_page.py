"""Pages of `tersely evaluate` and `tersely compare`: self-contained, all text from models and data escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from tersely.evaluation import WITHIN_TOKENS
from tersely.evaluation.build import per_prompt
from tersely.evaluation.metrics import JUDGE_AXES, metric
from tersely.evaluation.table import MODES, interval, is_found, number, p_value
from tersely.report.pictures import PICTURES_CSS, Dot, Spot, dots, histogram, scatter
from tersely.report.style import CSS

EXAMPLES = 3
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_OWN_CSS = """
.wide td { white-space: nowrap; } .found td { font-weight: 600; } .wide td:first-child { white-space: normal;
  min-width: 9em; }
"""
_DRAWN = (
    "within_5",
    "composite",
    "composite_in_length",
    "rouge_1",
    "rouge_2",
    "rouge_l",
    "bleu",
    "chrf",
    "meteor",
    "meteor_exact_stem",
    "embedding_reference",
    "embedding_document",
    "coverage_facts",
    "copy_rate",
    *(f"judge_{axis}" for axis in JUDGE_AXES),
)
_COMPARED = (*(name for name in _DRAWN if name != "within_5"), "composite_at_equal_length")
"""Differences that share an axis: those of shares of a few prompts would squeeze the others."""


def render_evaluation(evaluation: Mapping[str, Any]) -> str:
    """The page of one evaluation: table, distributions, quality against length, worst and best examples.

    Args:
        evaluation: What `tersely evaluate` wrote.
    """
    arms = {mode: evaluation[mode] for mode in MODES} | dict(evaluation["baselines"])
    count = evaluation["greedy"]["metrics"].get("tokens", {}).get("n", 0)
    facts = [
        f"{count} prompts of {_text(evaluation['data'])} {_text(evaluation['split'])}",
        f"target {_target(evaluation)} tokens",
        f"version {_text(evaluation.get('policy_version'))}, weights {_text(evaluation['weights_sha256'][:12])}",
        f"composite: mean of {_text(', '.join(evaluation['composite_of']))}",
        *(f"left out: {_text(name)} ({_text(why)})" for name, why in evaluation["left_out"].items()),
    ]
    body = [
        f"<h1>{_text(evaluation['model'])}</h1><p class='muted'>{' &middot; '.join(facts)}</p>",
        "<h2>Figures</h2><p class='muted'>Means over prompts, with 95&nbsp;% bootstrap intervals.</p>",
        _means(arms),
        "<h2>Lengths and quality</h2>",
        f"<div class='grid'>{_distributions(evaluation, arms)}</div>",
        "<h2>Figure by figure</h2>",
        f"<div class='grid'>{_bars(arms)}</div>",
        _examples(evaluation),
    ]
    return _page(f"tersely: evaluation of {evaluation['model']}", body)


def render_comparison(comparison: Mapping[str, Any], evaluations: Mapping[str, Mapping[str, Any]]) -> str:
    """The page of a comparison: per pair the table, the differences as a picture, and the prompts that changed most.

    Args:
        comparison: What `compare` returned.
        evaluations: What was compared, by the same names.
    """
    heads = "".join(
        f"<p><b>{_text(name)}</b>: {_text(head['model'])}, version {_text(head['policy_version'])}, weights"
        f" {_text(str(head['weights_sha256'])[:12])}; {_text(head['data'])} {_text(head['split'])}</p>"
        for name, head in comparison["evaluations"].items()
    )
    remarks = "".join(f"<p class='muted'>{_text(remark)}</p>" for remark in comparison["remarks"])
    body = [
        f"<h1>{_text(' and '.join(comparison['evaluations']))}</h1>{heads}{remarks}",
        f"<p class='muted'>p (Holm) is corrected over all {comparison['comparisons']} comparisons of this page; bold:"
        f" below {comparison['alpha']:g}. Detectable: the smallest true difference that one uncorrected test finds 8"
        " times in 10.</p>",
    ]
    together: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for pair in comparison["pairs"]:
        together.setdefault((pair["a"], pair["b"]), []).append(pair)
    for (a, b), pairs in together.items():
        body.append(f"<h2>{_text(b)} minus {_text(a)}</h2>{_differences(pairs, comparison['alpha'])}")
        body.append(f"<div class='grid'>{_difference_bars(pairs)}</div>")
        if a in evaluations and b in evaluations:
            body.append(_changed(evaluations[a], evaluations[b], a, b))
    return _page(f"tersely: {' and '.join(comparison['evaluations'])}", body)


def _page(title: str, body: Sequence[str]) -> str:
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{escape(title)}</title><style>{CSS}{PICTURES_CSS}{_OWN_CSS}</style></head><body>\n"
        + "\n".join(filter(None, body))
        + "\n</body></html>\n"
    )


def _means(arms: Mapping[str, Mapping[str, Any]]) -> str:
    names = list(dict.fromkeys(name for arm in arms.values() for name in arm["metrics"]))
    rows = []
    for name in names:
        digits = metric(name).digits
        cells = []
        for arm in arms.values():
            figure = arm["metrics"].get(name)
            if figure is None or figure["mean"] is None:
                cells.append("<td>-</td>")
                continue
            low, high = figure["ci95"]
            span = (
                "" if low is None else f"<br><span class='muted'>{number(low, digits)} to {number(high, digits)}</span>"
            )
            cells.append(f"<td>{number(figure['mean'], digits)}{span}</td>")
        rows.append(f"<tr><td>{_text(metric(name).title)}</td>{''.join(cells)}</tr>")
    head = "".join(f"<th>{_text(name.replace('_', ' '))}</th>" for name in arms)
    return f"<div class='wide'><table><tr><th>figure</th>{head}</tr>{''.join(rows)}</table></div>"


def _distributions(evaluation: Mapping[str, Any], arms: Mapping[str, Mapping[str, Any]]) -> str:
    target = evaluation.get("target_tokens")
    band = None if target is None else (target - WITHIN_TOKENS, target + WITHIN_TOKENS)
    lengths = [e["completion_tokens"] for arm in arms.values() for e in arm["examples"]]
    bounds = (0.0, float(max([*lengths, (target or 0) + WITHIN_TOKENS, 1])))
    parts = []
    for name, arm in arms.items():
        if name in MODES or name == "zero_shot":
            shown = [float(e["completion_tokens"]) for e in arm["examples"]]
            title = f"Length, {name.replace('_', ' ')}{'; shaded: target +-5' if band else ''}"
            parts.append(histogram(title, shown, bounds=bounds, band=band, unit="tokens"))
    for mode in MODES:
        quality = [e["metrics"]["composite"] for e in arms[mode]["examples"]]
        known = [value for value in quality if value is not None]
        parts.append(histogram(f"Composite quality, {mode}", known, bounds=(0.0, max([1.0, *known]))))
    for mode in MODES:
        spots = [
            Spot(f"{e['id']}", float(e["completion_tokens"]), e["metrics"]["composite"], strong=False)
            for e in arms[mode]["examples"]
            if e["metrics"]["composite"] is not None
        ]
        title = f"Quality against length, {mode}: each point a summary"
        parts.append(scatter(title, spots, x_name="tokens", y_name="composite", band=band))
    return "".join(parts)


def _bars(arms: Mapping[str, Mapping[str, Any]]) -> str:
    parts = []
    for name in _DRAWN:
        rows = [
            Dot(arm_name.replace("_", " "), figure["mean"], *figure["ci95"])
            for arm_name, arm in arms.items()
            if (figure := arm["metrics"].get(name)) is not None and figure["mean"] is not None
        ]
        if rows:
            parts.append(dots(metric(name).title, rows, digits=metric(name).digits))
    return "".join(parts)


def _examples(evaluation: Mapping[str, Any]) -> str:
    known = [e for e in evaluation["greedy"]["examples"] if e["metrics"].get("composite") is not None]
    ranked = sorted(known, key=lambda e: (e["metrics"]["composite"], e["id"]))
    if not ranked:
        return ""
    count = min(EXAMPLES, max(1, len(ranked) // 2))
    documents = evaluation.get("documents") or {}
    parts = []
    for title, chosen in (("Worst", ranked[:count]), ("Best", ranked[::-1][:count])):
        cards = "".join(_example(e, documents.get(e["id"])) for e in chosen)
        parts.append(f"<h2>{title} by the composite, greedy</h2>{cards}")
    return "".join(parts)


def _example(example: Mapping[str, Any], document: object) -> str:
    return (
        f"<section class='example'><p class='muted'>{_text(example['id'])}</p>"
        f"<div class='card'>{_summary(example)}</div>{_sources(example, document)}</section>"
    )


def _sources(example: Mapping[str, Any], document: object) -> str:
    return (
        f"<details><summary>reference and document</summary><p><b>Reference.</b> {_text(example['reference'])}</p>"
        f"<blockquote>{_text(document)}</blockquote></details>"
    )


def _summary(example: Mapping[str, Any], name: str = "") -> str:
    tokens, target = example["completion_tokens"], example["target_tokens"]
    near = example["stopped"] and abs(tokens - target) <= WITHIN_TOKENS
    length = f"<span class='{'target' if near else 'off'}'>{tokens} tokens</span>"
    end = "" if example["stopped"] else ", cut off at the limit"
    quality = number(example["metrics"].get("composite"), 3)
    text = _text(example["completion"])
    shown = f"<p>{text}</p>" if text.strip() else "<p class='muted'>(no text)</p>"
    label = f"<span class='muted'>{_text(name)} &middot; </span>" if name else ""
    reasons = "".join(
        f"<p class='muted'>{_text(axis)} {number(example['metrics'].get(f'judge_{axis}'), 2)}: {_text(reason)}</p>"
        for axis, reason in (example.get("judge") or {}).items()
        if reason
    )
    return f"{label}{length}<span class='muted'> of {target}{end}; composite {quality}</span>{shown}{reasons}"


def _differences(pairs: Sequence[Mapping[str, Any]], alpha: float) -> str:
    rows = []
    for pair in pairs:
        digits = metric(pair["metric"]).digits
        title = metric(pair["metric"]).title + (" (extrapolated)" if pair.get("extrapolated") else "")
        cells = [
            f"{title}, {pair['mode']}",
            number(pair["mean_difference"], digits, sign=True),
            interval(pair["ci95"], digits),
            p_value(pair["p"]),
            p_value(pair["p_wilcoxon"]),
            p_value(pair["p_holm"]),
            str(pair["n"]),
            number(pair["minimum_detectable"], digits),
        ]
        found = " class='found'" if is_found(pair, alpha) else ""
        rows.append(f"<tr{found}>{''.join(f'<td>{_text(cell)}</td>' for cell in cells)}</tr>")
    head = ("figure", "difference", "95 % interval", "p", "p (Wilcoxon)", "p (Holm)", "n", "detectable")
    names = "".join(f"<th>{name}</th>" for name in head)
    return f"<div class='wide'><table><tr>{names}</tr>{''.join(rows)}</table></div>"


def _difference_bars(pairs: Sequence[Mapping[str, Any]]) -> str:
    parts = []
    for mode in MODES:
        rows = [
            Dot(pair["metric"].replace("_", " "), pair["mean_difference"], *pair["ci95"])
            for pair in pairs
            if pair["mode"] == mode and pair["metric"] in _COMPARED and pair["mean_difference"] is not None
        ]
        if rows:
            parts.append(dots(f"Differences, {mode}; the line of no difference is 0", rows, digits=3))
    return "".join(parts)


def _changed(first: Mapping[str, Any], second: Mapping[str, Any], a: str, b: str) -> str:
    early, late = per_prompt(first["greedy"], "composite"), per_prompt(second["greedy"], "composite")
    ranked = sorted((late[key] - early[key], key) for key in late if key in early)
    if not ranked:
        return ""
    count = min(EXAMPLES, max(1, len(ranked) // 2))
    texts = [{e["id"]: e for e in found["greedy"]["examples"]} for found in (first, second)]
    documents = first.get("documents") or {}
    parts = []
    for title, chosen in (("Lost most", ranked[:count]), ("Gained most", ranked[::-1][:count])):
        parts.append(f"<h2>{title} by the composite, greedy</h2>")
        for change, key in chosen:
            pair = "".join(
                f"<div class='card'>{_summary(own[key], name)}</div>" for own, name in zip(texts, (a, b), strict=True)
            )
            parts.append(
                f"<section class='example'><p class='muted'>{_text(key)}: {change:+.3f}</p>"
                f"<div class='pair'>{pair}</div>{_sources(texts[1][key], documents.get(key))}</section>"
            )
    return "".join(parts)


def _target(evaluation: Mapping[str, Any]) -> str:
    span = evaluation.get("target_range")
    return f"{span[0]} to {span[1]}" if span else _text(evaluation.get("target_tokens"))


def _text(value: object) -> str:
    return escape("-" if value is None else str(value), quote=True)
