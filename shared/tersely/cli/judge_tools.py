"""`tersely judge calibrate|drift`: whether a judge can be trusted, and still can."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from tersely.cli.options import JsonOption

BaseUrlOption = Annotated[str | None, typer.Option("--base-url", metavar="URL", help="OpenAI-compatible endpoint.")]
ModelOption = Annotated[str | None, typer.Option("--model", metavar="NAME", help="Model there.")]
KeyOption = Annotated[
    str | None, typer.Option("--api-key-env", metavar="NAME", help="Environment variable with the key.")
]
RoundsOption = Annotated[int | None, typer.Option("--rounds", min=1, help="Judgements per summary and axis.")]
BudgetOption = Annotated[int | None, typer.Option("--budget-tokens", min=1, help="Stop after so many tokens.")]


def add_to(group: typer.Typer) -> None:
    """Adds the commands to the group `judge`."""
    group.command("calibrate", help="Compare a judge with human labels: rank correlation, kappa, bias per axis.")(
        calibrate
    )
    group.command("drift", help="Judge a frozen anchor set anew; exit 28 if the scores have shifted.")(drift)


def calibrate(
    labels: Annotated[Path, typer.Argument(metavar="LABELS.jsonl", help="From tersely label.")],
    judgements: Annotated[
        Path | None, typer.Option("--judgements", metavar="FILE", help="From tersely judge-file, instead of judging.")
    ] = None,
    base_url: BaseUrlOption = None,
    model: ModelOption = None,
    api_key_env: KeyOption = None,
    rounds: RoundsOption = None,
    budget_tokens: BudgetOption = None,
    cache: Annotated[
        Path | None, typer.Option("--cache", metavar="DIR", help="Keep the judge's answers here, and use those kept.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Prints one line per axis."""
    from tersely.cli.tools import load_tool

    endpoint = None
    if base_url is not None or model is not None:
        endpoint = _endpoint(base_url, model, api_key_env, rounds, budget_tokens, cache)
    found = load_tool("judge_calibrate")(labels, judgements=judgements, endpoint=endpoint)
    typer.echo(json.dumps(found, indent=2, ensure_ascii=False) if as_json else "\n".join(calibration_lines(found)))


def drift(
    baseline: Annotated[
        Path, typer.Option("--baseline", metavar="FILE", help="First scores; made when it does not exist.")
    ],
    base_url: BaseUrlOption = None,
    model: ModelOption = None,
    api_key_env: KeyOption = None,
    rounds: RoundsOption = None,
    budget_tokens: BudgetOption = None,
    record: Annotated[bool, typer.Option("--record", help="Make the baseline anew.")] = False,
    anchors: Annotated[
        Path | None, typer.Option("--anchors", metavar="FILE.jsonl", help="Own anchors {id, document, completion}.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Prints one line per axis; ends with 28 where an axis has shifted."""
    from tersely.cli.tools import load_tool

    run = load_tool("judge_drift")
    more = {} if anchors is None else {"anchors": anchors}
    endpoint = _endpoint(base_url, model, api_key_env, rounds, budget_tokens, None)
    found = run(endpoint, baseline, record=record, **more)
    typer.echo(json.dumps(found, indent=2, ensure_ascii=False) if as_json else "\n".join(drift_lines(found, baseline)))
    refuse_shift(found)


def refuse_shift(found: Mapping[str, Any]) -> None:
    """Ends a check that found a shift.

    Raises:
        JudgeShifted: naming the axes.
    """
    from tersely.errors import JudgeShifted

    names = [name for name, axis in found["axes"].items() if axis["shifted"]]
    if names:
        raise JudgeShifted(
            f"The judge {found['judge']} has shifted in {', '.join(names)} since the baseline.",
            "Don't compare its scores with earlier ones: calibrate it anew, then make a new baseline with --record.",
        )


def calibration_lines(found: Mapping[str, Any]) -> list[str]:
    """The result for people."""
    raters = ", ".join(name or "(no name)" for name in found["raters"])
    lines = [
        f"judge {found['judge']}, rubrics {found['rubrics']}; {found['summaries']} summaries labelled by {raters}",
        f"{'':13} {'n':>4}  {'Spearman':24} {'weighted kappa':24} {'bias (judge - people)':24} abstained",
    ]
    for name, axis in found["axes"].items():
        cells = [_with_interval(axis[key], axis[f"{key}_ci95"]) for key in ("spearman", "kappa", "bias")]
        lines.append(f"{name:13} {axis['n']:4}  {cells[0]:24} {cells[1]:24} {cells[2]:24} {axis['abstained']}")
    if found["between_raters"]:
        lines.append("people among themselves")
    for name, axis in found["between_raters"].items():
        cells = [_with_interval(axis[key], axis[f"{key}_ci95"]) for key in ("spearman", "kappa")]
        lines.append(f"{name:13} {axis['n']:4}  {cells[0]:24} {cells[1]:24}")
    return lines


def drift_lines(found: Mapping[str, Any], baseline: Path) -> list[str]:
    """The result for people."""
    if found["recorded"]:
        return [f"judge {found['judge']}, rubrics {found['rubrics']}: baseline written to {baseline}"]
    lines = [f"judge {found['judge']} now, {found['judge_then']} then, rubrics {found['rubrics']}"]
    for name, axis in found["axes"].items():
        shift = _with_interval(axis["mean_difference"], axis["ci95"])
        p = "" if axis["p_holm"] is None else f"p {axis['p_holm']:.3g}"
        lost = f", {axis['lost']} without a score now" if axis["lost"] else ""
        lines.append(f"{name:13} {shift:26} {p:10} {'SHIFTED' if axis['shifted'] else 'steady'}{lost}")
    return lines


def _with_interval(value: float | None, interval: list[float | None]) -> str:
    if value is None:
        return "-"
    low, high = interval
    return f"{value:+.3f}" if low is None or high is None else f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"


def _endpoint(
    base_url: str | None,
    model: str | None,
    api_key_env: str | None,
    rounds: int | None,
    budget_tokens: int | None,
    cache: Path | None,
) -> dict[str, Any]:
    if base_url is None or model is None:
        raise typer.BadParameter("the judge needs both --base-url and --model")
    return {
        "base_url": base_url,
        "model": model,
        "api_key_env": api_key_env,
        "rounds": rounds,
        "budget_tokens": budget_tokens,
        "cache": cache,
    }
