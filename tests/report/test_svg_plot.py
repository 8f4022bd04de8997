"""Plots as SVG: well-formed, accessible, everything inside, nothing loaded from elsewhere."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from enginehouse.report.svg_plot import (
    HEIGHT,
    WIDTH,
    Level,
    Mark,
    Missing,
    Plot,
    svg_plot,
    ticks,
)

SVG = "{http://www.w3.org/2000/svg}"


def plot(*marks: Mark, **more: object) -> Plot:
    """A plot of these marks from the first to the last."""
    at = [mark.x for mark in marks] or [0.0]
    given = {
        "name": "p",
        "title": "scores",
        "description": "They rise.",
        "x_title": "step",
        "y_title": "score",
        "unit": "%",
        "span": (min(at), max(at)),
    }
    return Plot(marks=marks, **given | more)  # type: ignore[arg-type]


def mark(x: float, y: float, half: float | None = 5.0, **more: object) -> Mark:
    """A value with an interval of that half width."""
    low, high = (None, None) if half is None else (y - half, y + half)
    return Mark(x=x, y=y, low=low, high=high, label=f"{x:g}: {y:g}", **more)  # type: ignore[arg-type]


def drawn(of: Plot) -> ET.Element:
    """The plot, parsed."""
    return ET.fromstring(svg_plot(of))


def texts(root: ET.Element) -> list[str]:
    """What is written in it."""
    return [text.text or "" for text in root.iter(f"{SVG}text")]


def test_a_plot_says_what_it_is():
    """Title and description, named by the element, and a title for whatever one points at."""
    root = drawn(plot(mark(1, 40), mark(2, 60), missing=(Missing(x=2, label="lost & gone"),)))
    assert root.get("role") == "img"
    named = root.get("aria-labelledby", "").split()
    said = {e.get("id"): e.text for e in root.iter() if e.get("id")}
    assert [said[name] for name in named] == ["scores", "They rise."]
    labels = [group.findtext(f"{SVG}title") for group in root.iter(f"{SVG}g")]
    assert labels == ["1: 40", "2: 60", "lost & gone"]


def test_values_stand_where_they_belong():
    """Larger values higher, later ones further right, intervals around them, all inside."""
    root = drawn(plot(mark(10, 20), mark(20, 80), mark(40, 50)))
    circles = [(float(c.get("cx")), float(c.get("cy"))) for c in root.iter(f"{SVG}circle")]
    (x1, y1), (x2, y2), (x3, y3) = circles
    assert x2 - x1 == pytest.approx((x3 - x1) / 3, abs=0.2)
    assert y1 > y3 > y2
    assert y1 - y3 == pytest.approx(y3 - y2, abs=0.2)
    assert all(0 < x < WIDTH and 0 < y < HEIGHT for x, y in circles)
    line = root.find(f"{SVG}polyline").get("points").split()
    assert [tuple(map(float, point.split(","))) for point in line] == circles


def test_the_best_is_told_by_more_than_colour():
    """A ring, and the word."""
    root = drawn(plot(mark(1, 40), mark(2, 60, ringed=True)))
    assert len(list(root.iter(f"{SVG}circle"))) == 3
    assert texts(root).count("best") == 1


@pytest.mark.parametrize(
    "given",
    [
        plot(),
        plot(mark(5, 50, None)),
        plot(mark(5, 0, 0.0), within=(0.0, 100.0)),
        plot(mark(1, 100), mark(1, 100), within=(0.0, 100.0)),
        plot(mark(0, 0.001, 0.0001), mark(1e9, 0.002, 0.0001)),
        plot(missing=(Missing(x=3, label="x"),), span=(3.0, 3.0)),
        plot(level=Level(y=40, low=30, high=50, label="base", caption="base 40%")),
    ],
)
def test_little_and_odd_is_drawn(given: Plot):
    """Nothing, one point, no interval, no spread, huge steps."""
    root = drawn(given)
    for circle in root.iter(f"{SVG}circle"):
        assert 0 <= float(circle.get("cx")) <= WIDTH
        assert 0 <= float(circle.get("cy")) <= HEIGHT
    assert ("no scores yet" in texts(root)) == (not given.marks)


def test_an_axis_of_names():
    """At most ten, the long ones shortened."""
    places = tuple(f"a-name-that-is-much-too-long-{n}" for n in range(25))
    root = drawn(plot(*(mark(n, 50) for n in range(25)), places=places))
    written = [text for text in texts(root) if text.startswith("…")]
    assert len(written) == 9
    assert max(map(len, written)) == 14


def test_steps_below_the_axis_are_those_that_there_are():
    """Whole numbers within the span; of a single point, that one."""
    assert "100,000" in texts(drawn(plot(mark(100_000, 5))))
    written = texts(drawn(plot(mark(1, 5), mark(3, 5))))
    assert {"1", "2", "3"} <= set(written)
    assert "1.5" not in written


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 100, [0, 20, 40, 60, 80, 100]),
        (-0.1, 0.3, [-0.1, 0.0, 0.1, 0.2, 0.3]),
        (31, 79, [40, 50, 60, 70]),
        (100, 1400, [500, 1000]),
    ],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]):
    """1, 2 or 5 times a power of ten apart, within the range."""
    assert ticks(low, high) == pytest.approx(expected)
