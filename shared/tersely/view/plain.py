"""One line per thing that happens, for logs and pipes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TextIO

from tersely.supervise.run_dir import RunDir, read_json
from tersely.supervise.supervisor import describe_exit
from tersely.view import figures
from tersely.view.follow import JsonlTail


class PlainView:
    """Prints events as they come in; see `line_for`.

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
        self._phase = phase_of(read_json(run_dir.status) or {})  # of an earlier start, when it is a resumed run

    def refresh(self) -> None:
        """Prints what is new."""
        for event in self._tail.read_new():
            line = line_for(event, self._steps)
            if line is not None:
                print(one_line(line), file=self._out, flush=True)
        status = read_json(self._run_dir.status) or {}
        phase = phase_of(status)
        if phase != self._phase and phase is not None:
            print(one_line(phase), file=self._out, flush=True)
        self._phase = phase

    def close(self) -> None:
        """Prints the rest."""
        self.refresh()


def phase_of(status: Mapping[str, Any]) -> str | None:
    """What the run is doing, in a word or two; None before it says so."""
    state, evaluation = status.get("state"), status.get("evaluation") or {}
    if state == "evaluating" and evaluation:
        return f"evaluating: {evaluation.get('name')}, {evaluation.get('of')} held-out prompts"
    return str(state) if state else None


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
        exit_code = event.get("exit_code")
        how = describe_exit(exit_code if isinstance(exit_code, int) else None)
        return f"{event.get('name', event.get('role'))} (pid {event.get('pid')}) died: {how}"
    if kind == "service_started" or kind == "service_restarted":
        verb = "started" if kind == "service_started" else "restarted"
        return f"{event.get('name', event.get('role'))} {verb} (pid {event.get('pid')})"
    if kind == "alarm":
        facts = [f"{key} {value}" for key, value in event.items() if key not in ("time", "kind", "name")]
        return "  ".join([f"alarm {event.get('name', '')}", *facts])
    if kind == "run_resumed":
        return f"resumed (trainer incarnation {event.get('incarnation', '-')})"
    if kind == "group_quarantined":
        return f"group {event.get('group_id')} quarantined: {event.get('message', event.get('error_kind', ''))}"
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
