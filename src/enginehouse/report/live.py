"""Progress of a run: a bar that is redrawn on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Generic, TypeVar

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from enginehouse.report.terminal import make_console, redraws
from enginehouse.report.visible_text import write_text
from enginehouse.results.experiment_progress import ExperimentProgress
from enginehouse.results.summary import Progress, TaskProgress

State = TypeVar("State")


@contextmanager
def progress_display(stream: IO[str]) -> Iterator[Callable[[Progress], None]]:
    """What shows the latest state inside the block, and leaves the last one on the screen.

    A bar per task if `stream` is a terminal that can move the cursor, otherwise lines.
    """
    with _display(stream, line=task_line, drawing=bars) as show:
        yield show


@contextmanager
def match_display(stream: IO[str]) -> Iterator[Callable[[ExperimentProgress], None]]:
    """As `progress_display`, for an experiment: one bar for all matches."""
    with _display(stream, line=match_line, drawing=match_bar) as show:
        yield show


@contextmanager
def _display(
    stream: IO[str],
    *,
    line: Callable[[State], str],
    drawing: Callable[[State], RenderableType],
) -> Iterator[Callable[[State], None]]:
    console = make_console(stream)
    if redraws(console):
        with Live(console=console, auto_refresh=False) as live:
            yield lambda state: live.update(drawing(state), refresh=True)
        return
    lines = PlainLines(stream, line=line)
    try:
        yield lines.show
    finally:
        lines.finish()


class PlainLines(Generic[State]):
    """A line at the beginning, every `interval` seconds, and at the end. For files and pipes."""

    def __init__(
        self,
        stream: IO[str],
        *,
        line: Callable[[State], str],
        interval: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream
        self._line = line
        self._interval = interval
        self._clock = clock
        self._next = clock()
        self._latest: State | None = None
        self._printed = ""

    def show(self, state: State) -> None:
        """Print this state if the last line is old enough."""
        self._latest = state
        if (now := self._clock()) >= self._next:
            self._next = now + self._interval
            self._print(state)

    def finish(self) -> None:
        """Print the last state, unless it was just printed."""
        if self._latest is not None:
            self._print(self._latest)

    def _print(self, state: State) -> None:
        line = self._line(state) + "\n"
        if line != self._printed:
            self._printed = line
            write_text(self._stream, line)


def task_line(progress: Progress) -> str:
    """The status line, and how far each task is."""
    tasks = ", ".join(f"{t.task} {_share(t)}" for t in progress.tasks)
    return f"{status_line(progress)} [{tasks}]"


def match_line(progress: ExperimentProgress) -> str:
    """Matches that ended, are being played and failed, calls, tokens/s and time left."""
    p = progress
    tokens = p.completion_tokens / p.elapsed if p.completion_tokens and p.elapsed else None
    speed = "" if tokens is None else f"{tokens:,.0f} tokens/s, "
    ended = p.finished + p.failed
    seconds_left = 0.0 if ended == p.matches else p.seconds_left
    left = "?" if seconds_left is None else _duration(seconds_left)
    replayed = f" and {p.replayed:,} replayed" if p.replayed else ""
    return (
        f"{ended:,}/{p.matches:,} matches, {p.playing:,} playing, "
        f"{p.failed:,} failed, {p.calls:,} call{'' if p.calls == 1 else 's'}{replayed}, {speed}"
        f"{_duration(p.elapsed)}, {left} left"
    )


def match_bar(progress: ExperimentProgress) -> RenderableType:
    """A bar for the matches, and the status line below it."""
    ended = progress.finished + progress.failed
    grid = Table.grid(padding=(0, 1))
    grid.add_column(no_wrap=True)
    grid.add_column(ratio=1, min_width=3)
    grid.add_row(Text("matches"), ProgressBar(total=max(1, progress.matches), completed=ended))
    return Group(grid, Text(match_line(progress), style="red" if progress.failed else ""))


def status_line(progress: Progress) -> str:
    """Samples done, requests answered, failures, tokens/s and time left in one line."""
    p = progress
    requests = ""
    if p.requests is not None:
        requests = f"{p.requests:,} request{'' if p.requests == 1 else 's'}, "
    failed = f"{p.failed:,} failed" + (f", {p.unscored:,} unscored" if p.unscored else "")
    speed = "?" if p.tokens_per_second is None else f"{p.tokens_per_second:,.0f}"
    left = "?" if p.seconds_left is None else _duration(p.seconds_left)
    return (
        f"{p.done:,}/{p.total:,} samples, {requests}{failed}, {speed} tokens/s, "
        f"{_duration(p.elapsed)}, {left} left"
    )


def bars(progress: Progress) -> RenderableType:
    """A bar per task, and the status line below them."""
    grid = Table.grid(padding=(0, 1))
    grid.add_column(overflow="ellipsis", no_wrap=True)
    grid.add_column(ratio=1, min_width=3)
    grid.add_column(justify="right", no_wrap=True)
    for task in progress.tasks:
        bar = ProgressBar(total=max(1, task.total or 1), completed=task.done if task.total else 0)
        grid.add_row(Text(task.task), bar, Text(_share(task)))
    style = "red" if progress.failed or progress.unscored else ""
    return Group(grid, Text(status_line(progress), style=style))


def _share(task: TaskProgress) -> str:
    return f"{task.done:,}/{'?' if task.total is None else f'{task.total:,}'}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
