"""`tersely status`: how a run stands."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from tersely.cli.options import JsonOption


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("status", help="How a run stands, while it goes and after.")(status)


def status(
    run: Annotated[Path | None, typer.Argument(metavar="RUN", help="Directory of the run.")] = None,
    run_dir: Annotated[Path | None, typer.Option("--run-dir", metavar="DIR", help="The same.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Prints the run's state."""
    given = run or run_dir
    if given is None or (run and run_dir):
        raise typer.BadParameter("Name the directory of one run.", param_hint="RUN")
    from tersely.supervise.run_dir import RunDir
    from tersely.view.status import read_status

    found = read_status(RunDir(given.resolve()))
    typer.echo(json.dumps(found, indent=2) if as_json else "\n".join(lines(found)))


def lines(found: Mapping[str, Any]) -> list[str]:
    """The state as text."""
    from tersely.view import figures
    from tersely.view.alarms import alarm_line
    from tersely.view.plain import one_line
    from tersely.view.stalls import stall_line

    stale = f" (last word {figures.duration(found.get('age_seconds'))} ago)" if found.get("stale") else ""
    text = [
        f"run {found.get('run_id') or '-'}: {found['state']}{stale}",
        f"step {found.get('step', 0)}/{found.get('steps', '-')}  version {found.get('policy_version', '-')}"
        f"  {figures.duration(found.get('seconds'))}",
    ]
    if found.get("waiting_for"):
        text.append(f"waits for {one_line(str(found['waiting_for']))}")
    if found.get("stall"):
        text.append(one_line(stall_line(found["stall"])))
    step = found.get("last_step") or {}
    if step:
        text.append(
            f"last step: {figures.rewards(step)}  mean {figures.number(step.get('mean_tokens'))} tokens"
            f"  |err| {figures.number(step.get('mean_abs_length_error'))}"
            f"  within5 {figures.percent(step.get('within_5'))}"
        )
        text.append(f"learning: {figures.learning(step)}")
        text.append(
            f"texts: distinct-2 {figures.percent(step.get('distinct_2'))}"
            f"  self-overlap {figures.percent(step.get('self_overlap'))}"
            f"  length spread {figures.number(step.get('length_std'))}"
            f"  truncated {figures.percent(step.get('truncated'))}"
        )
    text += [one_line(alarm_line(alarm)) for alarm in found.get("alarms") or []]
    groups = found.get("groups") or {}
    text.append("groups: " + "  ".join(f"{name} {count}" for name, count in groups.items()))
    for name, depth in (found.get("queues") or {}).items():
        text.append(f"queue {name}: {depth.get('waiting', '-')} waiting, {depth.get('leased', '-')} leased")
    for node in found.get("nodes") or []:
        state = one_line(f"{node.get('state', '')} {node.get('detail') or ''}".strip())
        apart = ((found.get("last_step") or {}).get("mismatch_by_node") or {}).get(node.get("node_id"))
        engine = f"  [{node['engine']}]" if node.get("engine") else ""
        mismatch = f"  mismatch {figures.small(apart.get('nats'))}" if apart else ""
        line = f"{node.get('role', ''):<8} pid {node.get('pid')} on {node.get('host')}: {state}{engine}{mismatch}"
        text.append(one_line(line))
    return text
