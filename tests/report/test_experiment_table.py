"""An experiment's report on the terminal."""

from __future__ import annotations

import io

import msgspec
import pytest
from rich.console import Console
from tests.support.made_experiment_report import REPORT

from enginehouse.report.experiment_table import print_experiment, render_experiment
from enginehouse.results.experiment import Estimate, ExperimentReport
from enginehouse.results.summary import Figure


def text(report: ExperimentReport, width: int = 100) -> str:
    """The report as plain text."""
    stream = io.StringIO()
    Console(file=stream, width=width, markup=False).print(render_experiment(report))
    return stream.getvalue()


def test_the_report_says_everything():
    """Figures, intervals, differences, ratings, decisions, policies, work, failures, notes."""
    shown = text(REPORT)
    for part in (
        "base [and] lora",
        "79 of 80 matches",
        "-5.4 (-13.24 to 2.4)",
        "79.5% (76.5 to 82.6), in 74 of 80",
        "3 (all are equal)",
        "base vs =lora",
        "-43.7 (-50.8 to -36.8)",
        "0.008",
        "9.9",
        "no seed differs",
        "Holm, 2 tests",
        "+51",
        "+20 to +81",
        "790 by majority, 10 by tie",
        "80 of 2,400",
        "no valid vote: BLACK",
        "119 matches per hour",
        "9,492, 2 failed, 7 answered",
        "949,200 prompt and 37,968 generated",
        "90.0%",
        "ServerFaultError",
        "note: 1 of 80",
    ):
        assert part in shown, part


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_narrow_terminals_lose_nothing(width: int):
    """Lines fit; nothing is cut."""
    shown = text(REPORT, width)
    assert all(len(line) <= width for line in shown.splitlines())
    assert "…" not in shown
    words = " ".join(shown.split())
    for part in ("-5.4 (-13.24 to 2.4)", "-43.7 (-50.8 to -36.8)", "0.008"):
        assert part in words


def test_little_to_report():
    """Nothing finished: no tables, and the reasons are there."""
    none = msgspec.structs.replace(
        REPORT, finished=0, pairings=(), differences=(), correction=None, ratings=(), teams=()
    )
    shown = text(none)
    assert "0 of 80 matches" in shown
    assert "ServerFaultError" in shown
    assert "cooperation" not in shown


def test_no_escape_codes_without_a_terminal():
    """A pipe gets plain text, whatever teams are called."""
    stream = io.StringIO()
    print_experiment(
        msgspec.structs.replace(REPORT, name="\x1b[31mred"),
        file=stream,
    )
    assert "\x1b" not in stream.getvalue()


def test_few_seeds_are_said_once():
    """Figures without an interval are plain numbers; what that means is in the legend."""
    few = Estimate(value=0.75, count=4, interval=None, no_interval="too few seeds")
    seat = msgspec.structs.replace(REPORT.pairings[0].seats[0], figures={"score": few})
    pairing = msgspec.structs.replace(REPORT.pairings[0], seats=(seat,), total=few, welfare=None)
    small = msgspec.structs.replace(
        REPORT, pairings=(pairing,), differences=(), ratings=(), measures=REPORT.measures[:1]
    )
    (row,) = (line for line in text(small).splitlines() if line.startswith("score"))
    assert row.split() == ["score", "0.75"]
    assert "fewer than 5 seeds" in " ".join(text(small).split())


def test_there_is_no_negative_zero():
    """A rating, or a difference, that rounds to nothing."""
    rating = msgspec.structs.replace(
        REPORT.ratings[0],
        rating=Figure(value=-0.2, interval=None),
        no_interval="all are equal",
    )
    result = msgspec.structs.replace(REPORT.differences[0].result, difference=-1e-9)
    nothing = msgspec.structs.replace(REPORT.differences[0], result=result)
    shown = text(msgspec.structs.replace(REPORT, ratings=(rating,), differences=(nothing,)))
    assert "+0 (all are equal)" in shown
    assert "+0.0 (-50.8 to -36.8)" in shown
