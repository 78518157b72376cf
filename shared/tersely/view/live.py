"""The picture of a run that stays in place on a terminal."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tersely.config import Recipe
from tersely.supervise.run_dir import RunDir
from tersely.view import figures
from tersely.view.alarms import alarm_advice, alarm_head
from tersely.view.follow import JsonlTail
from tersely.view.long_work import LongWork
from tersely.view.plain import line_for, one_line
from tersely.view.stalls import stall_advice, stall_head
from tersely.view.status import read_status

REFRESH_SECONDS = 0.5
SHOWN_EVENTS = 5
BAR_WIDTH = 28


class LiveView:
    """Draws the run twice a second; writes nothing that stays but its last picture.

    Args:
        run_dir: The run.
        recipe: Its recipe, for target and steps.
        console: Where to draw.
        clock: Seconds, monotonic; tests move it.
    """

    def __init__(
        self, run_dir: RunDir, recipe: Recipe, console: Console, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._run_dir = run_dir
        self._recipe = recipe
        self._clock = clock
        self._tail = JsonlTail(run_dir.events, from_end=True)
        self._work = LongWork(run_dir)
        self._lines: list[str] = []
        self._drawn = float("-inf")
        self._live = Live(console=console, auto_refresh=False, transient=False, vertical_overflow="crop")

    def refresh(self) -> None:
        """Draws, if the last picture is old enough."""
        if self._clock() - self._drawn >= REFRESH_SECONDS:
            self._draw()

    def close(self) -> None:
        """Draws for the last time and gives the terminal back."""
        if self._live.is_started:
            self._draw()
            self._live.stop()

    def _draw(self) -> None:
        self._drawn = self._clock()
        self._live.start()  # not before there is something to draw; does nothing when it is started
        of_events = (line_for(event, self._recipe.run.steps) for event in self._tail.read_new())
        new = [*(line for line in of_events if line is not None), *self._work.read_new()]
        self._lines = [*self._lines, *map(one_line, new)][-SHOWN_EVENTS:]
        self._live.update(picture(read_status(self._run_dir), self._recipe, self._lines), refresh=True)


def picture(status: Mapping[str, Any], recipe: Recipe, lines: Sequence[str] = ()) -> RenderableType:
    """The run as one renderable.

    Args:
        status: As read_status gives it; anything may be missing.
        recipe: Of the run.
        lines: What happened last.
    """
    step: Mapping[str, Any] = status.get("last_step") or {}
    figures_and_lengths = Table.grid(padding=(0, 4), expand=False)
    figures_and_lengths.add_row(_step_table(step, recipe), _histogram(step, recipe))
    parts: list[RenderableType] = [_head(status, recipe), *_alarms(status), figures_and_lengths]
    parts += [_books(status), _nodes(status)]
    if lines:
        parts.append(Text("\n".join(lines), style="dim", no_wrap=True, overflow="ellipsis"))
    title = f"tersely {status.get('run_id') or ''}".strip()
    return Panel(Group(*parts), title=title, title_align="left", border_style="blue")


def _head(status: Mapping[str, Any], recipe: Recipe) -> RenderableType:
    done, total = int(status.get("step") or 0), int(status.get("steps") or recipe.run.steps)
    state = str(status.get("state", "starting"))
    evaluation = status.get("evaluation") or {}
    label = f"step {done}/{total}"
    if state == "evaluating" and evaluation:
        done, total = int(evaluation.get("done") or 0), int(evaluation.get("of") or 1)
        label = f"evaluation {evaluation.get('name', '')} {done}/{total}"
    grid = Table.grid(padding=(0, 2))
    rate = sum(node.get("tokens_per_second") or 0.0 for node in status.get("nodes") or [])
    facts = [f"version {status.get('policy_version', '-')}", figures.duration(status.get("seconds"))]
    facts.append(f"{rate:.0f} tokens/s")
    grid.add_row(
        Text(state, style="bold red" if state in ("dead", "failed") else "bold green"),
        Text(label, style="bold"),
        ProgressBar(total=max(total, 1), completed=done, width=BAR_WIDTH),
        *facts,
    )
    waiting = status.get("waiting_for")
    return Group(grid, Text(f"waits for {one_line(str(waiting))}", style="yellow")) if waiting else grid


def _alarms(status: Mapping[str, Any]) -> list[RenderableType]:
    """What is wrong now, two lines each."""
    lines: list[RenderableType] = []
    stall = status.get("stall")
    if stall:
        lines.append(Text(one_line(stall_head(stall)), style="bold red"))
        lines.append(Text(one_line(stall_advice(stall)), style="yellow"))
    for alarm in status.get("alarms") or []:
        lines.append(Text(one_line(alarm_head(alarm)), style="bold red"))
        lines.append(Text(one_line(alarm_advice(alarm)), style="yellow"))
    return lines


def _step_table(step: Mapping[str, Any], recipe: Recipe) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(justify="right")
    for name in recipe.rewards:
        table.add_row(f"reward {name}", figures.number((step.get("rewards") or {}).get(name), 3))
    least, most = recipe.length.targets
    wanted = f"{least}" if least == most else f"{least} to {most}"
    table.add_row("mean tokens", f"{figures.number(step.get('mean_tokens'))} of {wanted}")
    table.add_row("mean |error|", figures.number(step.get("mean_abs_length_error")))
    table.add_row("within +-5", figures.percent(step.get("within_5")))
    table.add_row("truncated", figures.percent(step.get("truncated")))
    table.add_row("length spread", figures.number(step.get("length_std")))
    table.add_row("distinct-2", figures.percent(step.get("distinct_2")))
    table.add_row("self-overlap", figures.percent(step.get("self_overlap")))
    return table


def _phases(step: Mapping[str, Any]) -> str:
    seconds = step.get("seconds")
    if not isinstance(seconds, Mapping):
        return "-"
    return "  ".join(f"{name} {figures.number(value)}" for name, value in seconds.items())


def histogram_bins(
    histogram: Sequence[Sequence[float]], target: int, rows: int = 9, least: float = 0
) -> list[tuple[int, int, int]]:
    """(first length, last length, count) of bins around the target; the middle one is target +-5.

    The first bin reaches down to `least`, the last one up without end.
    """
    width, half = 11, rows // 2
    counts = [0] * rows
    for tokens, count in histogram:
        index = int((tokens - (target - 5)) // width) + half
        counts[min(max(index, 0), rows - 1)] += int(count)
    bins = []
    for index, count in enumerate(counts):
        first = target - 5 + (index - half) * width
        bins.append((int(max(first, least)), first + width - 1, count))
    return [bin_ for bin_ in bins if bin_[1] >= least]


def _histogram(step: Mapping[str, Any], recipe: Recipe) -> RenderableType:
    """Lengths around the target; where each prompt has its own, how far lengths are from theirs."""
    if recipe.length.target_range is None:
        target, sign = recipe.length.target_tokens, ""
        bins = histogram_bins(step.get("length_histogram") or [], target)
    else:
        target, sign = 0, "+"
        bins = histogram_bins(step.get("length_error_histogram") or [], target, least=-math.inf)
    most = max((count for _, _, count in bins), default=0)
    table = Table.grid(padding=(0, 1))
    for index, (first, last, count) in enumerate(bins):
        in_band = first <= target <= last
        between = f"{first:+d} to {last:+d}" if sign else f"{first}-{last}"
        label = f"<={last:{sign}}" if index == 0 else f">={first:{sign}}" if index == len(bins) - 1 else between
        bar = "█" * (round(BAR_WIDTH * count / most) if most else 0) or ("▏" if count else "")
        table.add_row(
            Text(label, style="bold green" if in_band else "dim", justify="right"),
            Text(bar.ljust(BAR_WIDTH), style="green" if in_band else "blue"),
            Text(str(count) if count else "", style="dim"),
        )
    return table


def _books(status: Mapping[str, Any]) -> RenderableType:
    groups, queues = status.get("groups") or {}, status.get("queues") or {}
    names = ("issued", "trained", "stale", "no_signal", "quarantined", "in_flight")
    books = "  ".join(f"{name.replace('_', ' ')} {groups.get(name, '-')}" for name in names)
    depths = "  ".join(
        f"{name} {(queues.get(name) or {}).get('waiting', '-')}+{(queues.get(name) or {}).get('leased', '-')}"
        for name in ("prompts", "completions", "scored")
    )
    step = status.get("last_step") or {}
    return Group(
        Text(f"learning {figures.learning(step)}"),
        Text(f"seconds  {_phases(step)}"),
        Text(f"groups   {books}"),
        Text(f"queues   {depths}  (waiting + leased)"),
    )


def _nodes(status: Mapping[str, Any]) -> RenderableType:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("node", "pid", "host", "engine", "state", "version", "tokens/s", "groups", "mismatch"):
        table.add_column(name, no_wrap=True)
    apart = (status.get("last_step") or {}).get("mismatch_by_node") or {}
    for node in status.get("nodes") or []:
        detail = node.get("detail") or ""
        state = one_line(f"{node.get('state', '')} {detail}".strip())[:40]
        engine = node.get("engine") or None
        cells = [node.get("role"), node.get("pid"), node.get("host"), engine, state, node.get("policy_version")]
        shown = [Text("-" if cell is None else one_line(str(cell))) for cell in cells]
        rate = node.get("tokens_per_second")
        table.add_row(
            *shown,
            figures.number(rate, 0) if rate else "-",
            str(node.get("groups_finished", "-")),
            figures.small((apart.get(node.get("node_id")) or {}).get("nats")),
        )
    return table
