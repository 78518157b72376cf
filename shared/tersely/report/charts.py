"""Line charts as inline SVG, coloured by the page's CSS variables."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

WIDTH, HEIGHT = 420, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 12, 28

Point = tuple[float, float | None]


def line_chart(
    title: str,
    points: Sequence[Point],
    *,
    band: tuple[float, float] | None = None,
    unit: str = "",
    percent: bool = False,
    marks: Sequence[float] = (),
) -> str:
    """One series over steps.

    Args:
        title: Shown above, and read out by screen readers.
        points: (step, value); a value of None leaves a gap.
        band: Value range to shade, e.g. target +-5.
        unit: Word after values in the tool tips.
        percent: Values are shares in [0, 1].
        marks: Steps to draw an upright line at.

    Returns:
        A `<figure>`; with a note instead of a chart when there is nothing to draw.
    """
    known = [(x, y) for x, y in points if y is not None and math.isfinite(y)]
    caption = f"<figcaption>{escape(title)}</figcaption>"
    if not known:
        return f"<figure>{caption}<p class='muted'>no figures</p></figure>"
    values = [y for _, y in known] + list(band or ())
    ticks = nice_ticks(min(values), max(values))
    if percent:
        ticks = [tick for tick in ticks if 0 <= tick <= 1 + 1e-9] if min(values) >= 0 and max(values) <= 1 else ticks
    low, high = min(ticks[0], *values), max(ticks[-1], *values)
    first, last = known[0][0], max(known[-1][0], known[0][0] + 1)

    def px(x: float) -> float:
        return LEFT + (x - first) / (last - first) * (WIDTH - LEFT - RIGHT)

    def py(y: float) -> float:
        return TOP + (high - y) / (high - low) * (HEIGHT - TOP - BOTTOM)

    parts = []
    if band is not None:
        top, bottom = py(band[1]), py(band[0])
        parts.append(
            f"<rect class='band' x='{LEFT}' y='{top:.1f}' width='{WIDTH - LEFT - RIGHT}' height='{bottom - top:.1f}'/>"
        )
    for tick in ticks:
        y = py(tick)
        parts.append(f"<line class='rule' x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{y:.1f}' y2='{y:.1f}'/>")
        parts.append(
            f"<text x='{LEFT - 6}' y='{y + 4:.1f}' text-anchor='end'>{axis_label(tick, ticks, percent=percent)}</text>"
        )
    for x, anchor in ((first, "start"), (known[-1][0], "end")):
        parts.append(f"<text x='{px(x):.1f}' y='{HEIGHT - 8}' text-anchor='{anchor}'>step {x:g}</text>")
    for x in marks:
        if first <= x <= last:
            place = f"x1='{px(x):.1f}' x2='{px(x):.1f}' y1='{TOP}' y2='{HEIGHT - BOTTOM}'"
            parts.append(f"<line class='mark' {place}><title>alarm at step {x:g}</title></line>")
    parts += [f"<polyline class='series' points='{run}'/>" for run in _runs(points, px, py)]
    for x, y in known:
        shown = f"{100 * y:.0f} %" if percent else f"{y:.3g} {unit}".strip()
        tip = f"<title>step {x:g}: {escape(shown)}</title>"
        parts.append(f"<circle class='dot' cx='{px(x):.1f}' cy='{py(y):.1f}' r='2.5'>{tip}</circle>")
    label = escape(title, quote=True)
    head = f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' role='img' aria-label=\"{label}\">"
    return f"<figure>{caption}{head}{''.join(parts)}</svg></figure>"


def nice_ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers that cover [low, high]; at least two."""
    if high - low < 1e-9 * max(abs(low), abs(high), 1e-9):
        pad = abs(high) * 0.1 or 1.0
        low, high = low - pad, high + pad
    raw = (high - low) / about
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * size for factor in (1, 2, 2.5, 5, 10) if factor * size >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def axis_label(tick: float, ticks: Sequence[float], *, percent: bool = False) -> str:
    """A tick's text, with as many digits as its neighbours need."""
    if percent:
        return f"{100 * tick:.0f} %"
    step = ticks[1] - ticks[0]
    if step < 1e-3:
        mantissa, exponent = f"{tick:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}" if tick else "0"
    digits = max(0, -math.floor(math.log10(step) + 1e-9)) + (1 if f"{step:.1e}".startswith("2.5") else 0)
    return f"{tick + 0.0:.{digits}f}"


def _runs(points: Sequence[Point], px: Callable[[float], float], py: Callable[[float], float]) -> list[str]:
    runs: list[list[str]] = [[]]
    for x, y in points:
        if y is None or not math.isfinite(y):
            runs.append([])
        else:
            runs[-1].append(f"{px(x):.1f},{py(y):.1f}")
    return [" ".join(run) for run in runs if len(run) > 1]
