"""Progress of a run: a live bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import IO, Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from enginehouse.report.visible_text import write_text
from enginehouse.results.summary import Progress


class ProgressDisplay(Protocol):
    """Shows progress between `with` and its end; call it with the latest state."""

    def __enter__(self) -> Self:
        """Begin to show."""
        ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave the last state on the screen."""
        ...

    def __call__(self, progress: Progress) -> None:
        """Show this state (now or soon)."""
        ...


class LiveBar:
    """A bar per task that is redrawn in place. For terminals."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, auto_refresh=False)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._live.stop()

    def __call__(self, progress: Progress) -> None:
        """Redraw."""
        self._live.update(bars(progress), refresh=True)


class PlainLines:
    """A line at the beginning, every `interval` seconds, and at the end. For files and pipes."""

    def __init__(
        self,
        stream: IO[str],
        *,
        interval: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream
        self._interval = interval
        self._clock = clock
        self._next = clock()
        self._latest: Progress | None = None
        self._shown = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._latest is not None:
            self._print(self._latest)

    def __call__(self, progress: Progress) -> None:
        """Print it if the last line is old enough."""
        self._latest = progress
        if (now := self._clock()) >= self._next:
            self._next = now + self._interval
            self._print(progress)

    def _print(self, progress: Progress) -> None:
        tasks = ", ".join(f"{t.task} {t.done:,}/{t.total:,}" for t in progress.tasks)
        line = f"{status_line(progress)} [{tasks}]\n"
        if line != self._shown:
            self._shown = line
            write_text(self._stream, line)


def progress_display(console: Console, stream: IO[str]) -> ProgressDisplay:
    """The bar if `console` draws on a terminal that can move the cursor, else lines."""
    if console.is_terminal and not console.is_dumb_terminal:
        return LiveBar(console)
    return PlainLines(stream)


def status_line(progress: Progress) -> str:
    """Samples done, requests answered, failures, tokens/s and time left in one line."""
    p = progress
    speed = (
        f"{p.tokens_per_second:,.0f} tokens/s" if p.tokens_per_second is not None else "? tokens/s"
    )
    left = f"{_duration(p.seconds_left)} left" if p.seconds_left is not None else "? left"
    requests = ""
    if p.requests is not None:
        requests = f"{p.requests:,} request{'' if p.requests == 1 else 's'}, "
    failed = f"{p.failed:,} failed" + (f", {p.unscored:,} unscored" if p.unscored else "")
    done = f"{p.done:,}/{p.total:,} samples, {requests}{failed}"
    return f"{done}, {speed}, {_duration(p.elapsed)}, {left}"


def bars(progress: Progress) -> RenderableType:
    """A bar per task, and below them what `status_line` says."""
    grid = Table.grid(padding=(0, 1))
    grid.add_column(overflow="ellipsis", no_wrap=True)
    grid.add_column(ratio=1, min_width=3)
    grid.add_column(justify="right", no_wrap=True)
    for task in progress.tasks:
        bar = ProgressBar(total=max(1, task.total), completed=task.done)
        grid.add_row(Text(task.task), bar, Text(f"{task.done:,}/{task.total:,}"))
    style = "red" if progress.failed or progress.unscored else ""
    return Group(grid, Text(status_line(progress), style=style))


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
