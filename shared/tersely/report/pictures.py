"""More pictures as inline SVG, coloured by the page's CSS: histograms, dots with intervals, and a scatter.

Text from outside is escaped here, so callers pass it as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from tersely.report.charts import axis_label, nice_ticks

PICTURES_CSS = """
.bar { fill: var(--series); } .bar:hover { opacity: .75; } .whisker { stroke: var(--series); stroke-width: 2; }
.faint { fill: var(--muted); opacity: .55; } .lone { fill: var(--text); }
svg text.name { fill: var(--text); } svg text.value { font-variant-numeric: tabular-nums; }
figure.broad { overflow-x: auto; }
"""

WIDTH = 420
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 12, 34


@dataclass(frozen=True, slots=True)
class Dot:
    """A mean with its interval, on a line of its own.

    Attributes:
        name: What it belongs to.
        mean: None where there is no figure.
        low: Lower end of its interval, if any.
        high: Upper end.
        single: Single values behind the mean, e.g. one per seed; shown fainter.
    """

    name: str
    mean: float | None
    low: float | None = None
    high: float | None = None
    single: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Spot:
    """A point of a scatter with its name; `strong` ones are named in the picture, others in the tool tip."""

    name: str
    x: float
    y: float
    strong: bool = True


def histogram(
    title: str,
    values: Sequence[float],
    *,
    bounds: tuple[float, float],
    bins: int = 24,
    band: tuple[float, float] | None = None,
    most: float | None = None,
    unit: str = "",
) -> str:
    """How values are spread.

    Args:
        title: Shown above.
        values: What is counted.
        bounds: First and last value of the axis, so that several pictures can share it.
        bins: Bars over it.
        band: Range to shade, e.g. target +-5.
        most: Share at the top of the axis; none: the largest here.
        unit: Word for the axis and the tool tips.

    Returns:
        A `<figure>`; with a note when there is nothing to count.
    """
    height = 150
    shares, width = histogram_shares(values, bounds, bins)
    if not values:
        return _figure(title, "<p class='muted'>no figures</p>")
    top = max(most or 0.0, *shares) or 1.0
    px = _scale(bounds, (LEFT, WIDTH - RIGHT))
    floor = height - BOTTOM
    parts = []
    if band is not None:
        low, high = max(band[0], bounds[0]), min(band[1], bounds[1])
        parts.append(_rect("band", px(low), TOP, max(px(high) - px(low), 0.0), floor - TOP))
    for index, share in enumerate(shares):
        if share:
            start = bounds[0] + index * width
            tall = share / top * (floor - TOP)
            tip = f"{start:g} to {start + width:g} {unit}: {100 * share:.0f} %"
            parts.append(
                _rect("bar", px(start) + 0.5, floor - tall, max(px(start + width) - px(start) - 1, 0.5), tall, tip)
            )
    parts.append(f"<line class='rule' x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{floor}' y2='{floor}'/>")
    for share in (0.0, top):
        y = floor - share / top * (floor - TOP)
        parts.append(_words(LEFT - 6, y + 4, f"{100 * share:.0f} %", anchor="end"))
    parts += _axis(nice_ticks(*bounds), bounds, px, floor, unit)
    return _figure(title, _svg(title, WIDTH, height, parts))


def histogram_shares(values: Sequence[float], bounds: tuple[float, float], bins: int) -> tuple[list[float], float]:
    """Share of the values in each of `bins` equal parts of `bounds`, and a part's width; beyond counts at the ends."""
    width = (bounds[1] - bounds[0]) / bins
    counts = [0] * bins
    for value in values:
        counts[min(max(int((value - bounds[0]) / width), 0), bins - 1)] += 1
    return [count / max(len(values), 1) for count in counts], width


def dots(title: str, rows: Sequence[Dot], *, band: tuple[float, float] | None = None, digits: int = 2) -> str:
    """Means with their intervals, one line each, on one axis.

    Args:
        title: Shown above.
        rows: From top to bottom.
        band: Range to shade.
        digits: After the point, in what is written beside each mean.

    Returns:
        A `<figure>`; with a note when no row has a mean.
    """
    known = [v for row in rows for v in (row.mean, row.low, row.high, *row.single) if v is not None]
    if not known:
        return _figure(title, "<p class='muted'>no figures</p>")
    pitch, names, figures = 22, 140, 48
    floor = TOP + pitch * len(rows)
    ticks = nice_ticks(min([*known, *(band or ())]), max([*known, *(band or ())]))
    bounds = (ticks[0], ticks[-1])
    px = _scale(bounds, (names, WIDTH - figures))
    parts = []
    if band is not None:
        parts.append(_rect("band", px(band[0]), TOP, px(band[1]) - px(band[0]), floor - TOP))
    for tick in ticks:
        parts.append(f"<line class='rule' x1='{px(tick):.1f}' x2='{px(tick):.1f}' y1='{TOP}' y2='{floor}'/>")
    parts += _axis(ticks, bounds, px, floor, "")
    for index, row in enumerate(rows):
        y = TOP + pitch * (index + 0.5)
        parts.append(_words(names - 8, y + 4, _short(row.name, 22), anchor="end", kind="name"))
        if row.mean is None:
            continue
        tip = f"{row.name}: {row.mean:.{digits}f}"
        if row.low is not None and row.high is not None:
            tip += f" (95 %: {row.low:.{digits}f} to {row.high:.{digits}f})"
            ends = f"x1='{px(row.low):.1f}' x2='{px(row.high):.1f}'"
            parts.append(f"<line class='whisker' {ends} y1='{y:.1f}' y2='{y:.1f}'/>")
        parts += [f"<circle class='faint' cx='{px(one):.1f}' cy='{y:.1f}' r='2.5'/>" for one in row.single]
        parts.append(
            f"<circle class='dot' cx='{px(row.mean):.1f}' cy='{y:.1f}' r='4.5'><title>{escape(tip)}</title></circle>"
        )
        parts.append(_words(WIDTH - 4, y + 4, f"{row.mean:.{digits}f}", anchor="end", kind="value"))
    return _figure(title, _svg(title, WIDTH, floor + BOTTOM, parts))


def scatter(
    title: str, spots: Sequence[Spot], *, x_name: str, y_name: str, band: tuple[float, float] | None = None
) -> str:
    """Two figures against each other.

    Args:
        title: Shown above.
        spots: The points.
        x_name: Under the axis.
        y_name: Above the upper end of the other.
        band: Range of x to shade.
    """
    if not spots:
        return _figure(title, "<p class='muted'>no figures</p>")
    height = 300
    xs = [spot.x for spot in spots] + list(band or ())
    x_ticks, y_ticks = nice_ticks(min(xs), max(xs)), nice_ticks(min(s.y for s in spots), max(s.y for s in spots))
    x_bounds, y_bounds = (x_ticks[0], x_ticks[-1]), (y_ticks[0], y_ticks[-1])
    top, floor = TOP + 16, height - BOTTOM - 12
    px, py = _scale(x_bounds, (LEFT, WIDTH - RIGHT)), _scale(y_bounds, (floor, top))
    parts = []
    if band is not None:
        parts.append(_rect("band", px(band[0]), top, px(band[1]) - px(band[0]), floor - top))
    for tick in y_ticks:
        parts.append(f"<line class='rule' x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{py(tick):.1f}' y2='{py(tick):.1f}'/>")
        parts.append(_words(LEFT - 6, py(tick) + 4, axis_label(tick, y_ticks), anchor="end"))
    parts += _axis(x_ticks, x_bounds, px, floor, "")
    parts.append(_words(LEFT, TOP + 4, y_name))
    parts.append(_words((LEFT + WIDTH - RIGHT) / 2, height - 8, x_name, anchor="middle"))
    taken: list[tuple[float, float, float]] = []
    for spot in sorted(spots, key=lambda one: one.strong):  # named ones on top
        x, y = px(spot.x), py(spot.y)
        kind, radius = ("dot", 4.5) if spot.strong else ("faint", 2.5)
        tip = f"<title>{escape(spot.name)}: {spot.x:.3g}, {spot.y:.3g}</title>"
        parts.append(f"<circle class='{kind}' cx='{x:.1f}' cy='{y:.1f}' r='{radius}'>{tip}</circle>")
        if spot.strong:
            parts += _name_of(spot.name, x, y, taken)
    return _figure(title, _svg(title, WIDTH, height, parts))


def _name_of(name: str, x: float, y: float, taken: list[tuple[float, float, float]]) -> list[str]:
    """A name beside its point, where no other name is; none where there is no room: the tool tip has it."""
    text = _short(name, 22)
    wide = 6.3 * len(text)
    for left, below in ((x + 8, y + 4), (x - 8 - wide, y + 4), (x + 6, y - 8), (x + 6, y + 16), (x - 6 - wide, y - 8)):
        inside = left >= LEFT and left + wide <= WIDTH - 2
        if inside and all(left + wide < start or left > end or abs(below - y0) > 12 for start, end, y0 in taken):
            taken.append((left, left + wide, below))
            return [_words(left, below, text, kind="name")]
    return []


def _scale(domain: tuple[float, float], pixels: tuple[float, float]) -> Callable[[float], float]:
    span = (domain[1] - domain[0]) or 1.0
    return lambda value: pixels[0] + (value - domain[0]) / span * (pixels[1] - pixels[0])


def _axis(
    ticks: Sequence[float], bounds: tuple[float, float], px: Callable[[float], float], floor: float, unit: str
) -> list[str]:
    inside = [tick for tick in ticks if bounds[0] - 1e-9 <= tick <= bounds[1] + 1e-9]
    labels = [axis_label(tick, ticks) for tick in inside]
    if unit and labels:
        labels[-1] = f"{labels[-1]} {unit}"
    last = len(inside) - 1
    anchors = ["end" if unit and index == last else "middle" for index in range(len(inside))]
    return [
        _words(min(px(tick) + (12 if anchor == "end" else 0), WIDTH - 2), floor + 16, text, anchor=anchor)
        for tick, text, anchor in zip(inside, labels, anchors, strict=True)
    ]


def _rect(kind: str, x: float, y: float, width: float, height: float, tip: str = "") -> str:
    inner = f"<title>{escape(tip)}</title>" if tip else ""
    return f"<rect class='{kind}' x='{x:.1f}' y='{y:.1f}' width='{width:.1f}' height='{height:.1f}'>{inner}</rect>"


def _words(x: float, y: float, text: str, *, anchor: str = "start", kind: str = "") -> str:
    shown = f" class='{kind}'" if kind else ""
    return f"<text{shown} x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}'>{escape(text)}</text>"


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "\u2026"


def _svg(title: str, width: int, height: float, parts: Sequence[str]) -> str:
    label = escape(title, quote=True)
    return f"<svg viewBox='0 0 {width} {height:g}' role='img' aria-label=\"{label}\">{''.join(parts)}</svg>"


def _figure(title: str, body: str) -> str:
    return f"<figure><figcaption>{escape(title)}</figcaption>{body}</figure>"
