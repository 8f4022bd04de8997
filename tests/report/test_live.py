from __future__ import annotations

import io
import re

import msgspec
import pytest
from tests.support.terminals import TerminalStream

from enginehouse.report.live import (
    PlainLines,
    match_display,
    match_line,
    progress_display,
    status_line,
    task_line,
)
from enginehouse.results.experiment_progress import ExperimentProgress
from enginehouse.results.summary import Progress, TaskProgress


def state(done: int, *, failed: int = 0, tokens: float | None = 120.0) -> Progress:
    """Two tasks, the first `done` of 50."""
    return Progress(
        tasks=(
            TaskProgress(
                task="gsm8k", done=done, total=50, outcomes={"correct": done, "failed": failed}
            ),
            TaskProgress(task="ifeval", done=0, total=1000, outcomes={}),
        ),
        elapsed=65.4,
        generated_tokens=1000,
        tokens_per_second=tokens,
        seconds_left=3725.0 if tokens else None,
    )


class Clock:
    """Time that tests set."""

    now = 0.0

    def __call__(self) -> float:
        """The time set."""
        return self.now


def test_status_line():
    """Samples, failures, speed, elapsed and remaining time."""
    expected = "10/1,050 samples, 2 failed, 120 tokens/s, 1:05, 1:02:05 left"
    assert status_line(state(10, failed=2)) == expected


def test_requests_are_told_where_a_sample_takes_several():
    """They move while no sample is done yet."""
    line = status_line(msgspec.structs.replace(state(0, tokens=None), requests=1234))
    assert line == "0/1,050 samples, 1,234 requests, 0 failed, ? tokens/s, 1:05, ? left"
    line = status_line(msgspec.structs.replace(state(0, tokens=None), requests=1))
    assert "1 request, 0 failed" in line


def test_nothing_known_yet():
    """Before the first answer speed and time left are unknown, not 0."""
    assert (
        status_line(state(0, tokens=None)) == "0/1,050 samples, 0 failed, ? tokens/s, 1:05, ? left"
    )


def test_plain_lines_come_every_few_seconds():
    """One line at the start, then one per interval, and the last state at the end."""
    clock, stream = Clock(), io.StringIO()
    lines = PlainLines(stream, line=task_line, interval=5.0, clock=clock)
    for second in range(12):
        clock.now = float(second)
        lines.show(state(second))
    lines.finish()
    shown = stream.getvalue().splitlines()
    assert [line.split("/")[0] for line in shown] == ["0", "5", "10", "11"]
    assert shown[0].endswith("[gsm8k 0/50, ifeval 0/1,000]")
    assert "\x1b" not in stream.getvalue()


def test_last_line_is_not_repeated():
    """A state that was just printed is not printed again; without any, nothing is."""
    stream = io.StringIO()
    lines = PlainLines(stream, line=task_line, clock=Clock())
    lines.show(state(1))
    lines.finish()
    assert len(stream.getvalue().splitlines()) == 1
    silent = io.StringIO()
    PlainLines(silent, line=task_line, clock=Clock()).finish()
    assert silent.getvalue() == ""


@pytest.mark.parametrize("width", [20, 40, 80])
def test_live_bar_draws_tasks_and_status(monkeypatch, width):
    """Every task's count and the status are on the screen, however narrow."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(width))
    stream = TerminalStream()
    with progress_display(stream) as show:
        show(state(3))
        show(state(50, failed=1))
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    assert "3/50" in shown
    assert "50/50" in shown
    assert "0/1,000" in shown
    assert "1 failed" in " ".join(shown.split())


def test_display_is_chosen_by_the_terminal(monkeypatch):
    """A bar where the cursor can move; lines in pipes and on dumb terminals."""

    def drawn(stream: io.StringIO) -> str:
        with progress_display(stream) as show:
            show(state(3))
        return stream.getvalue()

    monkeypatch.setenv("TERM", "xterm")
    assert "\x1b" in drawn(TerminalStream())
    assert "\x1b" not in drawn(io.StringIO())
    monkeypatch.setenv("TERM", "dumb")
    assert "\x1b" not in drawn(TerminalStream())


def test_bar_leaves_the_terminal_usable_after_an_error(monkeypatch):
    """The cursor comes back when the run is interrupted."""
    monkeypatch.setenv("TERM", "xterm")
    stream = TerminalStream()

    def interrupted() -> None:
        with progress_display(stream) as show:
            show(state(1))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert stream.getvalue().rstrip().endswith("\x1b[?25h")


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, "3/8 matches, 4 playing, 1 failed, 1,200 calls, 30 tokens/s, 1:40, 2:46 left"),
        ({"replayed": 7}, "1,200 calls and 7 replayed,"),
        ({"completion_tokens": 0, "seconds_left": None}, "calls, 1:40, ? left"),
        ({"finished": 7, "seconds_left": None}, "8/8 matches, 4 playing, 1 failed"),
    ],
)
def test_the_line_of_an_experiment(changes: dict[str, object], line: str):
    """Matches and calls of all sessions; speed and time of this one."""
    progress = ExperimentProgress(
        matches=8,
        finished=2,
        failed=1,
        playing=4,
        calls=1200,
        replayed=0,
        in_flight=64,
        prompt_tokens=90_000,
        completion_tokens=3000,
        elapsed=100.0,
        seconds_left=166.0,
    )
    assert line in match_line(msgspec.structs.replace(progress, **changes))
    assert match_line(msgspec.structs.replace(progress, finished=7)).endswith("0:00 left")
    stream = TerminalStream()
    with match_display(stream) as show:
        show(progress)
    assert "3/8 matches" in stream.getvalue()
