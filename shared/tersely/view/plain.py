"""One line per thing that happens, for logs and pipes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TextIO

from tersely.supervise.run_dir import RunDir, read_json
from tersely.supervise.supervisor import describe_exit
from tersely.view import figures
from tersely.view.alarms import alarm_line
from tersely.view.follow import JsonlTail
from tersely.view.long_work import LongWork
from tersely.view.stalls import stall_line


class PlainView:
    """Prints events as they come in, see `line_for`, and what the run turns to, see `phase_of`.

    The trainer's start is held back until there is more to tell: where it ends at once with an error that the user can
    mend, that error is all they see.

    Args:
        run_dir: The run.
        out: Where to print.
        steps: Steps of the whole run.
    """

    def __init__(self, run_dir: RunDir, out: TextIO, steps: int) -> None:
        self._run_dir = run_dir
        self._out = out
        self._steps = steps
        self._tail = JsonlTail(run_dir.events, from_end=True)
        self._work = LongWork(run_dir)
        self._held: list[str] = []
        self._phase: str | None = None

    def refresh(self) -> None:
        """Prints what is new."""
        for event in self._tail.read_new():
            line = line_for(event, self._steps)
            if line is None:
                continue
            if event.get("kind") == "service_started" and event.get("role") == "trainer":
                self._held.append(line)
            else:
                self._print(line)
        for line in self._work.read_new():
            self._print(line)
        phase = phase_of(read_json(self._run_dir.status) or {})
        if phase != self._phase and phase is not None:
            self._print(phase)
        self._phase = phase

    def close(self) -> None:
        """Prints the rest."""
        self.refresh()

    def _print(self, line: str) -> None:
        for text in (*self._held, line):
            print(one_line(text), file=self._out, flush=True)
        self._held = []


def phase_of(status: Mapping[str, Any]) -> str | None:
    """What the run is doing, in a few words; None before it says so, and when it failed: its error says that.

    An evaluation changes its words at each quarter of the held-out prompts.
    """
    state, evaluation, waiting = status.get("state"), status.get("evaluation") or {}, status.get("waiting_for")
    if not state or state == "failed":
        return None
    if state == "evaluating" and evaluation:
        done, of = int(evaluation.get("done") or 0), max(1, int(evaluation.get("of") or 1))
        quarter = min(4 * done // of, 3)  # the last one is told by the result
        return f"evaluating: {evaluation.get('name')} {math.ceil(of * quarter / 4)}/{of}"
    return f"{state}: waits for {waiting}" if state == "starting" and waiting else str(state)


def one_line(text: str) -> str:
    """Without line breaks or control characters, which a terminal would obey."""
    return "".join(char if char.isprintable() else " " for char in text)


def line_for(event: Mapping[str, Any], steps: int) -> str | None:
    """The line for an event, or None for those that only the log needs."""
    kind = event.get("kind")
    if kind == "step_finished":
        return _step_line(event, steps)
    if kind == "evaluation_finished":
        head = f"evaluation {event.get('name', '')} (version {event.get('policy_version', '-')})"
        parts = [f"{name}: {figures.evaluation(event[name])}" for name in ("greedy", "sampled") if event.get(name)]
        return "  ".join([head, *parts])
    if kind == "service_died":
        if event.get("error"):
            return None  # ends the run, and is then shown in full
        exit_code = event.get("exit_code")
        how = describe_exit(exit_code if isinstance(exit_code, int) else None)
        return f"{event.get('name', event.get('role'))} (pid {event.get('pid')}) died: {how}"
    if kind == "service_started" or kind == "service_restarted":
        verb = "started" if kind == "service_started" else "restarted"
        return f"{event.get('name', event.get('role'))} {verb} (pid {event.get('pid')})"
    if kind == "alarm":
        return alarm_line(event)
    if kind == "stall":
        return stall_line(event)
    if kind == "stall_over":
        return f"step {event.get('step')} goes on, {figures.duration(event.get('seconds'))} after {event.get('name')}"
    if kind == "run_gave_up":
        return f"given up after {figures.duration(event.get('give_up_seconds'))} of {event.get('name')}"
    if kind == "run_resumed":
        return f"resumed (trainer incarnation {event.get('incarnation', '-')})"
    if kind == "stage_began":
        return f"stage {event.get('name')} begins at step {event.get('step')}"
    if kind == "best_checkpoint":
        return f"best checkpoint so far: step {event.get('step')}, {event.get('figure')} {event.get('value'):.3f}"
    if kind == "rolled_back":
        return f"rolled back after step {event.get('step')} to step {event.get('to_step')}: {event.get('reason')}"
    if kind == "group_quarantined":
        return f"group {event.get('group_id')} quarantined: {event.get('reason') or 'no reason given'}"
    return None


def _step_line(event: Mapping[str, Any], steps: int) -> str:
    tokens = (
        f"mean {figures.number(event.get('mean_tokens'))} tokens"
        f"  |err| {figures.number(event.get('mean_abs_length_error'))}"
        f"  within5 {figures.percent(event.get('within_5'))}"
    )
    seconds = f"{figures.number(figures.total_seconds(event))} s"
    return "  ".join(
        part for part in (f"step {event.get('step')}/{steps}", figures.rewards(event, " "), tokens, seconds) if part
    )
