"""Plots of values with intervals against steps, as self-contained SVG.

Colours are CSS variables with a default, so that a page can redefine them for dark mode; text has
the page's own colour. No information is carried by colour alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from xml.sax.saxutils import escape, quoteattr

import msgspec

WIDTH, HEIGHT = 720, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 20, 20, 52
_MARK = 4.5  # radius
_CAP = 4  # half the width of an interval's ends
_LABELS = 10  # along an axis, at most
_HALO = 'paint-order="stroke" style="stroke:var(--paper, #fff)" stroke-width="3"'
_LONGEST = 14  # characters of a label below the axis


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """A value at a position, with its interval if it has one. `label` is its tooltip."""

    x: float
    y: float
    low: float | None
    high: float | None
    label: str
    ringed: bool = False


class Missing(msgspec.Struct, frozen=True, kw_only=True):
    """A position without a value: a cross at the bottom."""

    x: float
    label: str


class Level(msgspec.Struct, frozen=True, kw_only=True):
    """A dashed line across the plot, its interval a band. `caption` is written on it."""

    y: float
    low: float | None
    high: float | None
    label: str
    caption: str = ""


class Plot(msgspec.Struct, frozen=True, kw_only=True):
    """What is drawn. `name` is unique in a page, since ids are made from it.

    The horizontal axis spans `span` and is labelled with `places`, or with numbers if they are
    None. `unit` follows the numbers of the vertical axis, which stays `within` its bounds.
    """

    name: str
    title: str
    description: str
    x_title: str
    y_title: str
    unit: str
    marks: tuple[Mark, ...]
    span: tuple[float, float]
    missing: tuple[Missing, ...] = ()
    level: Level | None = None
    places: tuple[str, ...] | None = None
    within: tuple[float, float] = (-math.inf, math.inf)


def svg_plot(plot: Plot) -> str:
    """The plot as an SVG element with a title and a description."""
    return "".join(_parts(plot))


def ticks(low: float, high: float, *, most: int = 6) -> list[float]:
    """Round numbers from `low` to `high`, at most `most` + 1 of them.

    P. S. Heckbert, "Nice numbers for graph labels", Graphics Gems (1990) 61-63.
    """
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * nice for nice in (1, 2, 5, 10) if power * nice >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


class _Scale:
    """Maps a range of values to a range of pixels."""

    def __init__(self, low: float, high: float, *, start: float, end: float) -> None:
        self.low, self.high = low, high
        self._start, self._end = start, end

    def __call__(self, value: float) -> str:
        share = (value - self.low) / (self.high - self.low)
        return f"{self._start + share * (self._end - self._start):.1f}"


def _parts(plot: Plot) -> Iterator[str]:
    x, y = _scales(plot)
    yield (
        f'<svg class="plot" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'role="img" aria-labelledby="{plot.name}-title {plot.name}-description" '
        'font-family="system-ui, sans-serif" font-size="12" fill="currentColor">'
    )
    yield f'<title id="{plot.name}-title">{escape(plot.title)}</title>'
    yield f'<desc id="{plot.name}-description">{escape(plot.description)}</desc>'
    yield from _axes(plot, x, y)
    if not plot.marks:
        yield f'<text x="{WIDTH / 2}" y="{HEIGHT / 2}" text-anchor="middle">no scores yet</text>'
    if plot.level is not None:
        yield from _level(plot.level, y)
    yield from _curve(plot.marks, x, y)
    for missing in plot.missing:
        yield _cross(missing, x)
    yield "</svg>"


def _scales(plot: Plot) -> tuple[_Scale, _Scale]:
    left, right = plot.span
    pad = (right - left) * 0.03 or 1.0
    levels: Sequence[Mark | Level] = (*plot.marks, *([plot.level] if plot.level else ()))
    values = [v for item in levels for v in (item.y, item.low, item.high) if v is not None]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    more = (high - low) * 0.08 or 0.05
    low, high = max(low - more, plot.within[0]), min(high + more, plot.within[1])
    return (
        _Scale(left - pad, right + pad, start=_LEFT, end=WIDTH - _RIGHT),
        _Scale(low, high, start=HEIGHT - _BOTTOM, end=_TOP),
    )


def _axes(plot: Plot, x: _Scale, y: _Scale) -> Iterator[str]:
    right, bottom = WIDTH - _RIGHT, HEIGHT - _BOTTOM
    heights = ticks(y.low, y.high)
    digits = max(0, -math.floor(math.log10(heights[1] - heights[0]) + 1e-9)) if heights[1:] else 1
    for value in heights:
        yield f'<path d="M{_LEFT} {y(value)}H{right}" style="stroke:var(--grid, #d0d4da)"/>'
        yield (
            f'<text x="{_LEFT - 8}" y="{y(value)}" dy="0.35em" text-anchor="end">'
            f"{value:.{digits}f}{plot.unit}</text>"
        )
    yield f'<path d="M{_LEFT} {bottom}H{right}" stroke="currentColor"/>'
    for value, label in _places(plot):
        yield f'<path d="M{x(value)} {bottom}v5" stroke="currentColor"/>'
        yield f'<text x="{x(value)}" y="{bottom + 18}" text-anchor="middle">{escape(label)}</text>'
    yield (
        f'<text x="{(_LEFT + right) / 2}" y="{HEIGHT - 8}" text-anchor="middle">'
        f"{escape(plot.x_title)}</text>"
    )
    yield (
        f'<text transform="translate(14 {(_TOP + bottom) / 2}) rotate(-90)" text-anchor="middle">'
        f"{escape(plot.y_title)}</text>"
    )


def _places(plot: Plot) -> Iterator[tuple[float, str]]:
    if plot.places is None:
        low, high = plot.span
        for value in ticks(low, high, most=_LABELS - 1) if low < high else (low,):
            if value == round(value):
                yield value, f"{value:,.0f}"
        return
    every = math.ceil(len(plot.places) / _LABELS)
    for i in range(0, len(plot.places), every):
        label = plot.places[i]
        yield i, label if len(label) <= _LONGEST else f"…{label[1 - _LONGEST :]}"


def _level(level: Level, y: _Scale) -> Iterator[str]:
    right = WIDTH - _RIGHT
    yield f"<g><title>{escape(level.label)}</title>"
    if level.low is not None and level.high is not None:
        top = y(level.high)
        height = float(y(level.low)) - float(top)
        yield (
            f'<rect x="{_LEFT}" y="{top}" width="{right - _LEFT}" height="{height:.1f}" '
            'style="fill:var(--level, #6b7280)" fill-opacity="0.15"/>'
        )
    yield (
        f'<path d="M{_LEFT} {y(level.y)}H{right}" style="stroke:var(--level, #6b7280)" '
        'stroke-width="1.5" stroke-dasharray="6 4"/></g>'
    )
    if level.caption:
        yield (
            f'<text x="{right - 4}" y="{y(level.y)}" dy="-0.4em" text-anchor="end" {_HALO}>'
            f"{escape(level.caption)}</text>"
        )


def _curve(marks: Iterable[Mark], x: _Scale, y: _Scale) -> Iterator[str]:
    drawn = list(marks)
    line = " ".join(f"{x(mark.x)},{y(mark.y)}" for mark in drawn)
    series = "var(--series, #1d5fbf)"
    yield f'<polyline points={quoteattr(line)} fill="none" style="stroke:{series}"/>'
    for mark in drawn:
        at, height = x(mark.x), y(mark.y)
        yield f'<g style="stroke:{series};fill:{series}"><title>{escape(mark.label)}</title>'
        if mark.low is not None and mark.high is not None:
            cap = f"m-{_CAP} 0h{2 * _CAP}"
            yield f'<path d="M{at} {y(mark.low)}V{y(mark.high)}{cap}M{at} {y(mark.low)}{cap}"/>'
        yield f'<circle cx="{at}" cy="{height}" r="{_MARK}"/>'
        if mark.ringed:
            yield (
                f'<circle cx="{at}" cy="{height}" r="{_MARK + 4}" fill="none" stroke-width="2"/>'
                f'<text x="{at}" y="{height}" dy="-1.1em" dx="{_beside(at)}em" '
                f'text-anchor="middle" fill="currentColor" {_HALO}>best</text>'
            )
        yield "</g>"


def _beside(at: str) -> float:
    """To the right of a mark, or to its left at the right edge of the plot."""
    return 2.0 if float(at) < WIDTH - _RIGHT - 40 else -2.0


def _cross(missing: Missing, x: _Scale) -> str:
    at, height = x(missing.x), HEIGHT - _BOTTOM - 8
    return (
        f'<g style="stroke:var(--missing, #b3261e)" stroke-width="2">'
        f"<title>{escape(missing.label)}</title>"
        f'<path d="M{at} {height}m-5 -5l10 10m0 -10l-10 10"/></g>'
    )
