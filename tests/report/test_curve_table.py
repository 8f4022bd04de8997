"""A curve in the terminal while it grows, and in a pipe."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from tests.support.made_curves import made_curve
from tests.support.terminals import TerminalStream

from enginehouse.report.curve_table import CurveTable, LinePerPoint, curve_display
from enginehouse.results.summary import Progress, TaskProgress

NAMES = tuple(f"step-{n}" for n in range(1, 31))


def shown(curve: object, *, width: int = 120, height: int = 60) -> list[str]:
    """The table's lines in a terminal of that size."""
    file = io.StringIO()
    console = Console(file=file, width=width, height=height, markup=False, force_terminal=False)
    console.print(CurveTable(curve))  # type: ignore[arg-type]
    return [line.rstrip() for line in file.getvalue().splitlines()]


def test_a_row_for_every_point():
    """The base first; no column for a single task; why one failed stands below the table."""
    head, base, first, failed, last, why = shown(made_curve(NAMES[:3], failed=("step-2",)))
    assert head.split("  ")[0] == "step"
    assert "task" not in head
    assert base.split()[:2] == ["-", "base"]
    assert first.split()[:2] == ["1", "step-1"]
    assert failed.split() == ["2", "step-2", "failed"]
    assert why == "step 2: step-2 failed: it holds NaN"
    assert last.endswith("step-1")
    assert last.count("(") == 2


def test_a_row_for_every_task():
    """The name stands once."""
    lines = shown(made_curve(NAMES[:2], tasks=("gsm8k", "sums")))
    assert len(lines) == 1 + 3 * 2
    assert [("step-2" in line.split()[:2]) for line in lines[-2:]] == [True, False]


@pytest.mark.parametrize("height", [12, 20])
def test_a_long_table_shows_its_end(height: int):
    """The base and the latest rows; how many are left out is said."""
    lines = shown(made_curve(NAMES), height=height)
    assert len(lines) <= height - 4
    assert lines[0].startswith(f"{31 - (height - 8)} more")
    assert lines[2].split()[:2] == ["-", "base"]
    assert lines[-1].split()[:2] == ["30", "step-30"]


def test_a_narrow_terminal_gets_lines():
    """As a pipe does."""
    lines = shown(made_curve(NAMES[:1]), width=80)
    assert lines[0].startswith("org/tiny: sums ")
    assert "from the base" in "".join(lines)


def test_nothing_yet():
    """Is said."""
    assert shown(made_curve((), base=False)) == ["nothing has been evaluated yet"]


def test_a_pipe_gets_a_line_for_every_point():
    """What was known first, then each as it comes; everything else goes to the other stream."""
    out, err = io.StringIO(), io.StringIO()
    before, after = made_curve(NAMES[:1]), made_curve(NAMES[:2], failed=("step-2",))
    with curve_display(out, err) as display:
        assert isinstance(display, LinePerPoint)
        display.curve(before, None)
        display.note("evaluating step-2")
        display.progress(progress())
        display.curve(after, after.points[1])
    lines = out.getvalue().splitlines()
    assert [line.split(":")[0] for line in lines] == ["org/tiny", "step 1", "step 2"]
    assert lines[2] == "step 2: step-2 failed: it holds NaN"
    assert err.getvalue().startswith("evaluating step-2\n3/10 samples")


def test_a_terminal_gets_a_table_that_grows(monkeypatch: pytest.MonkeyPatch):
    """Notes stay above it; the last state is left on the screen."""
    for name, value in (("TERM", "xterm"), ("COLUMNS", "120"), ("LINES", "40")):
        monkeypatch.setenv(name, value)
    file = TerminalStream()
    curve = made_curve(NAMES[:2])
    with curve_display(file, io.StringIO()) as display:
        display.note("starting [vllm]")
        display.progress(progress())
        display.curve(curve, curve.points[1])
    said = file.getvalue()
    assert "starting [vllm]" in said
    assert "3/10" in said
    assert said.rindex("step-2") > said.rindex("3/10")


def progress() -> Progress:
    """An evaluation in progress."""
    task = TaskProgress(task="sums", done=3, total=10, outcomes={"correct": 3})
    return Progress(
        tasks=(task,), elapsed=1.0, generated_tokens=10, tokens_per_second=10.0, seconds_left=2.0
    )
