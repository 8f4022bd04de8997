"""A small report of an experiment, with something of everything."""

from __future__ import annotations

import msgspec

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
            no_interval=None,
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
