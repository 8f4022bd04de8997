"""A curve while it grows: a table on a terminal, a line for every point elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Protocol

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.text import Text

from enginehouse.report import curve_words as words
from enginehouse.report.live import PlainLines, bars, task_line
from enginehouse.report.terminal import make_console, make_table, redraws
from enginehouse.report.visible_text import write_text
from enginehouse.results.curve import Curve, CurvePoint, Kind
from enginehouse.results.summary import Progress

_COLUMNS = ("step", "name", "task", "score", "95 % interval", "from the base", "from the best")
_TABLE_WIDTH = 96
_OTHER_LINES = 8  # of the screen, besides the rows of the table


class CurveDisplay(Protocol):
    """Shows how a watch gets on."""

    def note(self, message: str) -> None:
        """Print a line about what is going on."""

    def progress(self, progress: Progress) -> None:
        """Show how far the current evaluation is."""

    def curve(self, curve: Curve, point: CurvePoint | None) -> None:
        """Show the curve after `point` was added; None if all of it was known before."""


@contextmanager
def curve_display(out: IO[str], err: IO[str]) -> Iterator[CurveDisplay]:
    """A table that grows if `out` is a terminal that can move the cursor, otherwise lines."""
    console = make_console(out)
    if not redraws(console):
        yield LinePerPoint(out, err)
        return
    with Live(console=console, auto_refresh=False) as live:
        table = GrowingTable(live)
        try:
            yield table
        finally:
            table.leave()


class GrowingTable:
    """A table that is redrawn in place below the notes; only its last rows if they do not fit."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._table: RenderableType = Text("nothing has been evaluated yet")

    def note(self, message: str) -> None:
        """Print it above the table."""
        self._live.console.print(Text(message, style="dim"))

    def progress(self, progress: Progress) -> None:
        """Redraw, with a bar per task below the table."""
        self._live.update(Group(self._table, Text(), bars(progress)), refresh=True)

    def curve(self, curve: Curve, point: CurvePoint | None) -> None:  # noqa: ARG002
        """Redraw the whole table."""
        self._table = CurveTable(curve)
        self.leave()

    def leave(self) -> None:
        """Leave the table alone on the screen, without bars."""
        self._live.update(self._table, refresh=True)


class LinePerPoint:
    """For files and pipes: points on `out`, everything else on `err`."""

    def __init__(self, out: IO[str], err: IO[str]) -> None:
        self._out = out
        self._err = err
        self._lines = PlainLines(err, line=task_line)

    def note(self, message: str) -> None:
        """Print it."""
        write_text(self._err, message + "\n")

    def progress(self, progress: Progress) -> None:
        """Print it every few seconds."""
        self._lines.show(progress)

    def curve(self, curve: Curve, point: CurvePoint | None) -> None:
        """Print the line of the new point, or of every known one."""
        for one in _rows(curve) if point is None else (point,):
            write_text(self._out, words.line(one) + "\n")


class CurveTable:
    """A row per point and task; a line per point if the terminal is too narrow for a table."""

    def __init__(self, curve: Curve) -> None:
        self._curve = curve

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        rows = list(_rows(self._curve))
        if not rows:
            yield Text("nothing has been evaluated yet")
            return
        several = len(self._curve.tasks) > 1
        fitting = max(3, (console.size.height - _OTHER_LINES) // max(1, len(self._curve.tasks)))
        left_out = max(0, len(rows) - fitting)
        if left_out:
            base = [row for row in rows[:1] if row.kind is Kind.BASE]
            rows = [*base, *rows[left_out + len(base) :]]
            yield Text(f"{left_out:,} more on the HTML page", style="dim")
        if options.max_width < _TABLE_WIDTH:
            yield from (Text(words.line(row)) for row in rows)
            return
        columns = [column for column in _COLUMNS if several or column != "task"]
        table = make_table(*columns, right=(0, columns.index("score")))
        for row in rows:
            for cells in _cells(self._curve, row, several=several):
                table.add_row(*cells)
        yield table
        yield from (Text(words.line(row), style="red") for row in rows if row.failure is not None)


def _rows(curve: Curve) -> Iterator[CurvePoint]:
    if curve.base is not None:
        yield curve.base
    yield from curve.points


def _cells(curve: Curve, point: CurvePoint, *, several: bool) -> Iterator[list[Text]]:
    name = "base" if point.kind is Kind.BASE else point.name
    best = {task.task for task in curve.tasks if task.best == point.name}
    if point.failure is not None:
        blank = [Text()] if several else []
        failed = Text("failed", style="red")
        yield [Text(words.step_text(point)), Text(name), *blank, failed, Text(), Text(), Text()]
        return
    for number, task in enumerate(point.tasks):
        style = "bold" if task.task in best and point.kind is not Kind.BASE else ""
        against = Text(words.difference_text(task.from_best))
        if task.from_best is not None:
            against.append(f" {task.from_best.name}", style="dim")
        yield [
            Text(words.step_text(point) if not number else ""),
            Text(name if not number else "", style=style),
            *([Text(task.task)] if several else []),
            Text(words.score_text(task), style=style),
            Text(words.interval_text(task)),
            Text(words.difference_text(task.from_base)),
            against,
        ]
