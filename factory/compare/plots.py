"""Plots as inline SVG: no script, no network; colours and fonts are the page's own."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10

Point = tuple[float, float]
_WIDTH, _HEIGHT = 380, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 12, 42
_TICKS = 5  # about so many on an axis
_POINTS = 240  # of a curve: more are not told apart
_DASH = 9  # length of a dash of curves that coincide
_MOST = 1e300  # of a value on an axis
_ROW = 40  # height of an interval with its name


@dataclass(frozen=True, slots=True)
class Series:
    """`place` is the run's, which decides its colour. `marks` are single points beside the line."""

    place: int
    name: str
    points: Sequence[Point]
    marks: Sequence[Point] = ()


@dataclass(frozen=True, slots=True)
class Axis:
    """A range of values on a stretch of pixels, with ticks at round numbers."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        step = _round_step((self.high - self.low) / _TICKS)
        first = ceil(self.low / step - 1e-9)
        return [number * step for number in range(first, floor(self.high / step + 1e-9) + 1)]


def fits(value: float) -> bool:
    """Whether an axis can have it, with room around it."""
    return abs(value) < _MOST


def axis(values: Sequence[float], start: float, end: float, *, zero: bool = False) -> Axis:
    """Holds the values with a little room around them, down to 0 where asked."""
    low, high = min(values), max(values)
    room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return Axis(0.0 if zero and low >= 0 else low - room, high + room, start, end)


def _round_step(step: float) -> float:
    power = 10.0 ** floor(log10(step))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= step * 0.999)


def number(value: float) -> str:
    """A tick's label: short, and exact enough to tell it from the next."""
    for limit, unit, sign in ((1e9, 1e9, "B"), (1e6, 1e6, "M"), (1e4, 1e3, "K")):
        if abs(value) >= limit:
            return f"{value / unit:.4g}{sign}"
    if value != 0 and abs(value) < 1e-3:
        return f"{value:.1e}".replace("e-0", "e-")
    return f"{value:,.4g}" if abs(value) > 1e-12 else "0"


def lines(series: Sequence[Series], across: str, up: str, *, zero: bool = False) -> str:
    """Curves over a common axis; nothing where no curve has a point."""
    there = [each for each in series if each.points or each.marks]
    values = [point for each in there for point in (*each.points, *each.marks)]
    if not values:
        return ""
    x = axis([point[0] for point in values], _LEFT, _WIDTH - _RIGHT, zero=True)
    y = axis([point[1] for point in values], _HEIGHT - _BOTTOM, _TOP, zero=zero)
    curves = (_curve(each, x, y, dash) for each, dash in zip(there, _dashes(there), strict=True))
    return _svg(
        _frame(x, y, across, up) + "".join(curves),
        _HEIGHT,
        f"{up} by {across}: {', '.join(each.name for each in there)}",
    )


def _dashes(series: Sequence[Series]) -> list[str]:
    """Curves that coincide share their line, a dash each, so that none is hidden under another."""
    alike = [[other for other in range(len(series)) if series[other].points == each.points] for each in series]
    return [
        "" if len(same) == 1 else f" style='--d: {_DASH} {_DASH * (len(same) - 1)}; --o: {-_DASH * same.index(place)}'"
        for place, same in enumerate(alike)
    ]


def _curve(series: Series, x: Axis, y: Axis, dash: str) -> str:
    points, title = thinned(series.points), f"<title>{escape(series.name)}</title>"
    path = " ".join(f"{x.at(one):.1f},{y.at(other):.1f}" for one, other in points)
    line = f"<polyline points='{path}'>{title}</polyline>" if len(points) > 1 else ""
    dots = "".join(_dot(x.at(one), y.at(other), 2.5, "") for one, other in points) if len(points) == 1 else ""
    marks = "".join(_dot(x.at(one), y.at(other), 3.5, " class='mark'") for one, other in series.marks)
    return f"<g class='s s{series.place}'{dash}>{line}{dots}{marks}</g>"


def thinned(points: Sequence[Point]) -> list[Point]:
    """Means over neighbours where there are too many to see, the first and the last as they are."""
    width = ceil(len(points) / _POINTS)
    if width <= 1:
        return list(points)
    parts = [points[start : start + width] for start in range(0, len(points), width)]
    means = [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]
    return [points[0], *means, points[-1]]


def _dot(x: float, y: float, radius: float, more: str) -> str:
    return f"<circle cx='{x:.1f}' cy='{y:.1f}' r='{radius:g}'{more}/>"


def scatter(series: Sequence[Series], across: str, up: str) -> str:
    """A point a run, with its name beside it."""
    there = [each for each in series if each.points]
    if not there:
        return ""
    x = axis([each.points[0][0] for each in there], _LEFT, _WIDTH - _RIGHT, zero=True)
    y = axis([each.points[0][1] for each in there], _HEIGHT - _BOTTOM, _TOP)
    placed = _beside([(x.at(each.points[0][0]), y.at(each.points[0][1])) for each in there])
    drawn = [
        f"<g class='s s{each.place}'><title>{escape(each.name)}: {number(each.points[0][0])}, "
        f"{number(each.points[0][1])}</title>{_dot(left, top, 5, '')}{_label(each.name, left, at)}</g>"
        for each, (left, top, at) in zip(there, placed, strict=True)
    ]
    return _svg(_frame(x, y, across, up) + "".join(drawn), _HEIGHT, f"{up} by {across}, a point a run")


_LINE = 13  # height of a name


def _beside(dots: Sequence[Point]) -> list[tuple[float, float, float]]:
    """With the height of each name, moved apart where dots are close."""
    found, taken = dict[int, float](), list[Point]()
    for place in sorted(range(len(dots)), key=lambda place: dots[place][1]):
        left, top = dots[place]
        at = top
        while any(abs(at - other) < _LINE and abs(left - near) < _WIDTH / 2 for near, other in taken):
            at += 1
        at = min(at, _HEIGHT - _BOTTOM - 4)
        taken.append((left, at))
        found[place] = at
    return [(*dot, found[place]) for place, dot in enumerate(dots)]


def _label(name: str, left: float, at: float) -> str:
    end = left > _WIDTH * 0.55
    x = left - 9 if end else left + 9
    shown = name if len(name) <= 32 else f"{name[:31]}…"
    anchor = " text-anchor='end'" if end else ""
    return f"<text class='name' x='{x:.1f}' y='{at + 4:.1f}'{anchor}>{escape(shown)}</text>"


@dataclass(frozen=True, slots=True)
class Interval:
    place: int
    name: str
    low: float
    value: float
    high: float
    told: str


def intervals(found: Sequence[Interval], across: str) -> str:
    """A line an interval, its name over it, and 0 as a line across all."""
    height = _TOP + _ROW * len(found) + _BOTTOM
    x = axis([0.0, *(bound for each in found for bound in (each.low, each.high))], _LEFT / 3, _WIDTH - _RIGHT)
    bottom = height - _BOTTOM
    drawn = list[str]()
    for row, each in enumerate(found):
        y, low, high = _TOP + _ROW * row + 26, x.at(each.low), x.at(each.high)
        drawn.append(
            f"<g class='s s{each.place}'><title>{escape(each.name)}: {escape(each.told)}</title>"
            f"<text class='name' x='{_LEFT / 3:.1f}' y='{y - 10}'>{escape(each.name)} "
            f"<tspan class='soft'>{escape(each.told)}</tspan></text>"
            f"<line x1='{low:.1f}' x2='{high:.1f}' y1='{y}' y2='{y}'/>{_dot(x.at(each.value), y, 4, '')}</g>"
        )
    ticks = "".join(_across_tick(x, tick, bottom, None) for tick in x.ticks())
    zero = f"<line class='zero' x1='{x.at(0):.1f}' x2='{x.at(0):.1f}' y1='{_TOP}' y2='{bottom}'/>"
    title = f"<text class='axis' x='{(x.start + x.end) / 2:.1f}' y='{height - 6}' text-anchor='middle'>{escape(across)}"
    told = ", ".join(f"{each.name} {each.told}" for each in found)
    return _svg(f"{ticks}{zero}{''.join(drawn)}{title}</text>", height, f"{across}: {told}")


def _frame(x: Axis, y: Axis, across: str, up: str) -> str:
    bottom, middle = y.start, (y.start + y.end) / 2
    parts = [_across_tick(x, tick, bottom, y.end) for tick in x.ticks()]
    for tick in y.ticks():
        at = y.at(tick)
        parts.append(
            f"<line class='grid' x1='{x.start}' x2='{x.end}' y1='{at:.1f}' y2='{at:.1f}'/>"
            f"<text x='{x.start - 6}' y='{at + 4:.1f}' text-anchor='end'>{number(tick)}</text>"
        )
    parts.append(
        f"<text class='axis' x='{(x.start + x.end) / 2:.1f}' y='{_HEIGHT - 6}' text-anchor='middle'>{escape(across)}"
        f"</text><text class='axis' transform='translate(12 {middle:.1f}) rotate(-90)' text-anchor='middle'>"
        f"{escape(up)}</text>"
    )
    return "".join(parts)


def _across_tick(x: Axis, tick: float, bottom: float, top: float | None) -> str:
    at = x.at(tick)
    grid = "" if top is None else f"<line class='grid' x1='{at:.1f}' x2='{at:.1f}' y1='{bottom}' y2='{top}'/>"
    return f"{grid}<text x='{at:.1f}' y='{bottom + 16}' text-anchor='middle'>{number(tick)}</text>"


def _svg(inside: str, height: float, label: str) -> str:
    return f"<svg viewBox='0 0 {_WIDTH} {height:g}' role='img' aria-label='{escape(label)}'>{inside}</svg>"
