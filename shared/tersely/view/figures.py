"""Figures of a run as short text; anything absent is a dash."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def number(value: object, digits: int = 1) -> str:
    """`12.3`, or `-` where there is no figure."""
    return f"{value:.{digits}f}" if isinstance(value, int | float) and not isinstance(value, bool) else "-"


def percent(value: object) -> str:
    """A share in [0, 1] as `34 %`."""
    return f"{100 * value:.0f} %" if isinstance(value, int | float) else "-"


def small(value: object) -> str:
    """A number that may be tiny: `0.012`, `5e-06`."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return "-"
    return f"{value:.3f}" if value >= 1e-3 or value == 0 else f"{value:.0e}"


def learning(step: Mapping[str, Any]) -> str:
    """What the learner says of a step, as one line."""
    parts = [
        f"entropy {number(step.get('entropy'), 2)}",
        f"no signal {percent(step.get('zero_variance'))}",
        f"clipped {percent(step.get('clip_share'))}",
        f"mismatch {small(step.get('mismatch'))}",
        f"gradient {number(step.get('grad_norm'), 2)}",
        f"staleness {number(step.get('staleness'))}",
    ]
    if step.get("kl") is not None:
        parts.append(f"kl {small(step['kl'])}")
    return "  ".join(parts)


def rewards(step: Mapping[str, Any], separator: str = "  ") -> str:
    """`length -0.31  rouge_l 0.14`."""
    parts = step.get("rewards")
    if not isinstance(parts, Mapping):
        return ""
    return separator.join(f"{name} {number(value, 2)}" for name, value in parts.items())


def total_seconds(step: Mapping[str, Any]) -> float | None:
    """Seconds of a step; summed where they are only given by phase."""
    seconds = step.get("step_seconds", step.get("seconds"))
    if isinstance(seconds, Mapping):
        return float(sum(v for v in seconds.values() if isinstance(v, int | float)))
    return float(seconds) if isinstance(seconds, int | float) else None


def evaluation(part: object) -> str:
    """One line of a held-out measurement."""
    if not isinstance(part, Mapping):
        return "-"
    return (
        f"mean {number(part.get('mean_tokens'))} tokens  |err| {number(part.get('mean_abs_length_error'))}"
        f"  within5 {percent(part.get('within_5'))}  stopped {percent(part.get('stopped'))}"
        f"  rouge_l {number(part.get('rouge_l'), 3)}"
    )


def duration(seconds: object) -> str:
    """`48 s`, `7 min 03 s`, `2 h 05 min`."""
    if not isinstance(seconds, int | float):
        return "-"
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
