"""An experiment's report on the terminal and as CSV."""

from __future__ import annotations

import csv
import io

import msgspec
import pytest
from rich.console import Console

from enginehouse.report.experiment_table import (
    experiment_csv,
    print_experiment,
    render_experiment,
)
from enginehouse.results.experiment import (
    Estimate,
    ExperimentReport,
    ExperimentWork,
    MatchFailures,
    Measured,
    PairingReport,
    Rating,
    SeatReport,
    TeamDifference,
    TeamReport,
)
from enginehouse.results.summary import Figure
from enginehouse.statistics.intervals import Interval
from enginehouse.statistics.paired import PairedResult


def interval(low: float, high: float) -> Interval:
    """At 95 %."""
    return Interval(low=low, high=high, confidence=0.95, method="bootstrap by seed")


SHARE = Estimate(value=0.795, count=74, interval=interval(0.765, 0.826), no_interval=None)
POINTS = Estimate(value=-5.4, count=80, interval=interval(-13.24, 2.4), no_interval=None)
EQUAL = Estimate(value=3.0, count=80, interval=None, no_interval="all are equal")
FIGURES = {"score": POINTS, "cooperation": SHARE, "first_defection": EQUAL}
RESULT = PairedResult(
    pairs=20,
    first=0.795,
    second=0.358,
    difference=-0.437,
    interval=interval(-0.508, -0.368),
    p_value=0.004,
    method="sign-flip test",
    detectable=0.099,
    only_first=None,
    only_second=None,
)


def team(name: str) -> TeamReport:
    """A team that voted."""
    return TeamReport(
        team=name,
        agents="5 smollm2",
        figures=FIGURES,
        decisions={"majority": 790, "tie": 10},
        asked=2400,
        invalid=80,
        calls=4800,
        prompt_tokens=480_000,
        completion_tokens=19_200,
    )


def pairing(one: str, other: str) -> PairingReport:
    """Of two teams."""
    return PairingReport(
        pairing=f"{one} vs {other}",
        matches=20,
        seats=(
            SeatReport(seat="team_a", team=one, figures=FIGURES),
            SeatReport(seat="team_b", team=other, figures=FIGURES),
        ),
        total=POINTS,
        welfare=SHARE,
    )


REPORT = ExperimentReport(
    run="20261129-red-black-7f3a",
    folder="/runs/7f3a",
    name="base [and] lora",
    game="red_black",
    game_version=1,
    seed=5,
    planned=80,
    finished=79,
    failures=(MatchFailures(kind="ServerFaultError", count=1, example="500"),),
    policies={"tie": "random", "no valid vote": "BLACK"},
    measures=(
        Measured(name="score", description="points", share=False),
        Measured(name="cooperation", description="share of BLACK", share=True),
        Measured(name="first_defection", description="round", share=False),
    ),
    teams=(team("base"), team("=lora")),
    pairings=(pairing("base", "=lora"), pairing("=lora", "base")),
    differences=(
        TeamDifference(
            comparison="in place",
            first="base",
            second="=lora",
            measure="cooperation",
            result=RESULT,
            p_corrected=0.008,
        ),
        TeamDifference(
            comparison="in place",
            first="base",
            second="=lora",
            measure="score",
            result=msgspec.structs.replace(
                RESULT, interval=None, p_value=None, detectable=None, method="none: no seed differs"
            ),
            p_corrected=None,
        ),
    ),
    correction="Holm, 2 tests",
    ratings=(
        Rating(
            team="base",
            rating=Figure(value=51.2, interval=interval(20.0, 81.0)),
            wins=12,
            ties=3,
            losses=5,
        ),
    ),
    work=ExperimentWork(
        calls=9492,
        failed_calls=2,
        replayed=7,
        shortened=3,
        prompt_tokens=949_200,
        completion_tokens=37_968,
        seconds=2430.0,
        matches_per_hour=119.0,
        prefix_cache_hits=0.9,
    ),
    answerers=(),
    notes=("1 of 80 matches failed",),
)


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


@pytest.mark.parametrize("width", [30, 60, 80, 200])
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


def test_csv_has_a_row_for_every_figure():
    """Numbers in full, empty where there is none; nothing that a spreadsheet would calculate."""
    rows = list(csv.DictReader(io.StringIO(experiment_csv(REPORT))))
    assert len(rows) == 2 * 3 + 2 * (2 + 2 * 3) + 2 + 1
    by_what = {row["what"] for row in rows}
    assert by_what == {"team", "pairing", "seat", "difference in place", "rating"}
    cooperation = next(r for r in rows if r["what"] == "seat" and r["measure"] == "cooperation")
    assert (cooperation["seat"], cooperation["value"], cooperation["low"]) == (
        "team_a", "0.795", "0.765",
    )  # fmt: skip
    first = next(r for r in rows if r["what"] == "difference in place")
    assert (first["other"], first["p_corrected"], first["count"]) == ("base", "0.008", "20")
    assert {row["team"] for row in rows} == {"base", "'=lora", ""}
    equal = next(r for r in rows if r["measure"] == "first_defection")
    assert (equal["value"], equal["low"], equal["method"]) == ("3.0", "", "")
