"""`tersely plan`: memory and time of a run before it is begun."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tersely.cli.config import FileArgument
from tersely.cli.options import JsonOption, SetOption

if TYPE_CHECKING:
    from rich.console import RenderableType

_MIB, _GIB = 1 << 20, 1 << 30


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("plan", help="What a run will need in memory and time here; refuses what can't fit.")(plan)


def plan(
    file: FileArgument,
    overrides: SetOption = None,
    memory_gib: Annotated[
        float | None,
        typer.Option("--memory-gib", min=0.1, metavar="GIB", help="Memory of the learner's device, if not this one's."),
    ] = None,
    device: Annotated[
        Literal["cpu", "cuda", "mps"] | None,
        typer.Option("--device", help="Plan for this device; it need not be here."),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Assume a speed; do not measure this machine's.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Prints the estimate, or fails with plan_does_not_fit and the settings that would fit."""
    from tersely.cli.config import check_addresses, check_plugins
    from tersely.cli.tools import load_tool
    from tersely.config import load_recipe

    recipe = load_recipe(file, overrides or ()).recipe
    check_plugins(recipe)
    check_addresses(recipe)
    found = load_tool("plan")(file, overrides or (), memory_gib=memory_gib, device=device, measure=not quick)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    from rich.console import Console

    console = Console()
    for part in tables(found):
        console.print(part)


def tables(found: Mapping[str, Any]) -> list[RenderableType]:
    """The estimate for people: memory, time, settings, remarks."""
    from rich.table import Table

    model, forward, settings = found["model"], found["forward"], found["settings"]
    head = f"{model['name']}: {model['parameters'] / 1e6:.1f} million weights"
    if model["trained_parameters"] != model["parameters"]:
        head += f", {model['trained_parameters'] / 1e6:.2f} million trained"
    head += f"; {forward['way']} forward"
    nodes = found["nodes"]
    memory = Table(title="Peak memory in MiB, estimated", title_justify="left")
    memory.add_column("", no_wrap=True)
    for node in nodes:
        count = f"{node['count']} x " if node["count"] > 1 else ""
        memory.add_column(f"{count}{node['node']}\n{node['device']}\n{node['peak_phase']}", justify="right")
    for name in dict.fromkeys(name for node in nodes for name, size in node["memory"].items() if size >= _MIB):
        sizes = [node["memory"].get(name, 0) for node in nodes]
        memory.add_row(name, *(f"{size / _MIB:.0f}" if size else "" for size in sizes))
    memory.add_section()
    memory.add_row("each", *(f"{node['peak_memory_bytes'] / _MIB:.0f}" for node in nodes), style="bold")
    together = []
    for device, size in found["devices"].items():
        limit = size["memory_bytes"]
        known = "a device that is not here" if limit is None else f"{limit / _GIB:.2f} GiB"
        together.append(f"all on {device}: {size['needed_bytes'] / _GIB:.2f} GiB of {known}")

    times = Table(title="Time of a step", title_justify="left")
    for name in ("phase", "seconds"):
        times.add_column(name, justify="right" if name == "seconds" else "left")
    for phase, seconds in found["seconds"].items():
        times.add_row(phase, _seconds(seconds))
    times.add_row("whole step", _seconds(found["seconds_per_step"]), style="bold")

    disk = found["disk"]
    lines = [
        f"time is good to a factor of about two; basis: {found['basis']['learner']}",
        f"prompts: longest {settings['longest_prompt_tokens']}, mean {settings['mean_prompt_tokens']} tokens"
        f" ({settings['prompts_looked_at']} looked at)",
        f"completions: {settings['completions_per_step']} per step, at most {settings['max_completion_tokens']} tokens;"
        f" {settings['tokens_per_step']} tokens per step if they have {settings['typical_completion_tokens']}",
        f"micro-batches: {settings['micro_batches_per_step']} per step ({settings['micro_batches_of_a_group']}"
        " of a group with completions at the limit)",
        f"disk: {disk['checkpoint_bytes'] / _MIB:.0f} MiB per checkpoint, {disk['kept_bytes'] / _GIB:.2f} GiB with"
        f" those that are kept, {disk['policy_bytes'] / _MIB:.0f} MiB for the final policy",
        *found["remarks"],
    ]
    return [head, memory, *together, "", times, *lines]


def _seconds(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"
