"""A curve as one HTML file with plots and tables, without scripts or external resources."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jinja2

from enginehouse.report import curve_words
from enginehouse.report.svg_plot import Level, Mark, Missing, Plot, svg_plot
from enginehouse.results.curve import Against, Curve, CurvePoint, TaskPoint

_PAGES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "pages"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def curve_page(curve: Curve) -> str:
    """The page; deterministic."""
    return _PAGES.get_template("curve.html").render(
        curve=curve,
        words=curve_words,
        plots={task.task: _plots(curve, task.task, n) for n, task in enumerate(curve.tasks)},
        newest=max((p.at for p in (curve.base, *curve.points) if p is not None), default=None),
    )


def _plots(curve: Curve, task: str, number: int) -> list[tuple[str, str]]:
    """The title and the SVG of each plot."""
    plots = [_scores(curve, task, f"score-{number}")]
    base = curve.base.name if curve.base else "the base"
    for name, title, of in (
        ("base", f"{task}: difference from {base}", lambda point: point.from_base),
        ("best", f"{task}: difference from the best so far", lambda point: point.from_best),
    ):
        plot = _differences(curve, task, of, name=f"{name}-{number}", title=title)
        if plot.marks:
            plots.append(plot)
    return [(plot.title, svg_plot(plot)) for plot in plots]


def _scores(curve: Curve, task: str, name: str) -> Plot:
    best = next((t.best for t in curve.tasks if t.task == task), None)
    marks = []
    for x, point, found in _places(curve, task):
        if found is not None and found.score is not None:
            interval = found.score.interval
            marks.append(
                Mark(
                    x=x,
                    y=100 * found.score.value,
                    low=100 * interval.low if interval else None,
                    high=100 * interval.high if interval else None,
                    label=f"{point.name}: {curve_words.score_text(found)} "
                    f"({curve_words.interval_text(found)})",
                    ringed=point.name == best,
                )
            )
    return Plot(
        name=name,
        title=f"{task}: score by step",
        description=curve_words.summary(curve, task),
        x_title=_axis(curve),
        y_title="score",
        unit="%",
        marks=tuple(marks),
        span=_span(curve, task),
        missing=_missing(curve, task),
        level=_base_level(curve, task),
        places=_labels(curve),
        within=(0.0, 100.0),
    )


def _base_level(curve: Curve, task: str) -> Level | None:
    base = curve.base.of(task) if curve.base else None
    if base is None or base.score is None:
        return None
    interval = base.score.interval
    return Level(
        y=100 * base.score.value,
        low=100 * interval.low if interval else None,
        high=100 * interval.high if interval else None,
        label=f"base {curve_words.score_text(base)} ({curve_words.interval_text(base)})",
        caption=f"base {curve_words.score_text(base)}",
    )


def _differences(
    curve: Curve, task: str, of: Callable[[TaskPoint], Against | None], *, name: str, title: str
) -> Plot:
    marks = []
    for x, point, found in _places(curve, task):
        against = of(found) if found is not None else None
        if against is not None and against.result is not None:
            result = against.result
            marks.append(
                Mark(
                    x=x,
                    y=100 * result.difference,
                    low=100 * result.interval.low if result.interval else None,
                    high=100 * result.interval.high if result.interval else None,
                    label=f"{point.name} from {against.name}: "
                    f"{curve_words.difference_text(against)}, p {curve_words.p_text(against)}",
                )
            )
    last = f" The last: {marks[-1].label}." if marks else ""
    return Plot(
        name=name,
        title=title,
        description=f"In points, on the same items, with 95 % intervals.{last}",
        x_title=_axis(curve),
        y_title="points",
        unit="",
        marks=tuple(marks),
        span=_span(curve, task),
        missing=_missing(curve, task),
        level=Level(y=0.0, low=None, high=None, label="no difference"),
        places=_labels(curve),
    )


def _places(curve: Curve, task: str) -> list[tuple[float, CurvePoint, TaskPoint | None]]:
    """The position of each point on the horizontal axis."""
    numbered = _labels(curve) is None
    return [
        (float(point.step or 0) if numbered else float(number), point, point.of(task))
        for number, point in enumerate(curve.points)
    ]


def _span(curve: Curve, task: str) -> tuple[float, float]:
    """From the first point to the last, so that the axes of a task's plots line up."""
    at = [x for x, _, _ in _places(curve, task)] or [0.0]
    return min(at), max(at)


def _missing(curve: Curve, task: str) -> tuple[Missing, ...]:
    missing = []
    for x, point, at in _places(curve, task):
        if at is None or at.score is None:
            why = (
                point.failure
                or (at.no_score if at else None)
                or "it was not evaluated on this task"
            )
            missing.append(Missing(x=x, label=f"{point.name}: {why}"))
    return tuple(missing)


def _labels(curve: Curve) -> tuple[str, ...] | None:
    """The labels below the axis; None if every point has a step."""
    if all(point.step is not None for point in curve.points):
        return None
    return tuple(p.name if p.step is None else f"{p.step:,}" for p in curve.points)


def _axis(curve: Curve) -> str:
    return "step" if _labels(curve) is None else "in order of step and appearance"
