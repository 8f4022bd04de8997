"""The report of an experiment, from its journal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Literal

import numpy as np
from msgspec import structs
from numpy.typing import NDArray

from enginehouse.arena.outcomes import (
    CONSENSUS,
    INVALID,
    SCORE,
    Outcomes,
    answerers,
    read_outcomes,
)
from enginehouse.arena.records import HUMAN, LLM, TeamSpec
from enginehouse.core.incidents import deaths_in_words
from enginehouse.results.experiment import (
    Answerer,
    Comparison,
    Estimate,
    ExperimentReport,
    ExperimentWork,
    MatchFailures,
    Measured,
    NoInterval,
    PairingReport,
    Rating,
    SeatReport,
    TeamDifference,
    TeamReport,
)
from enginehouse.results.summary import Figure
from enginehouse.statistics.bradley_terry import (
    ELO,
    all_met,
    bradley_terry,
    intervals_of_strengths,
)
from enginehouse.statistics.intervals import Floats, Interval
from enginehouse.statistics.multiplicity import holm
from enginehouse.statistics.seeds import (
    LEAST_FOR_INTERVAL,
    Bounds,
    compare_means,
    interval_of_means,
)
from enginehouse.store.runs import Run

TOTAL = "total"
_SHARE: Bounds = (0.0, 1.0)
_FREE: Bounds = (None, None)


def summarise_experiment(run: Run) -> ExperimentReport:
    """The report of an experiment, finished or not. Raises StoreError. Blocking.

    One pass over the journal. A team's figures are means over its matches; every interval and test
    takes whole seeds as units, since matches with the same seed resemble each other: see
    `statistics.seeds`.
    """
    outcomes = read_outcomes(run.journal_path)
    spec = outcomes.spec
    values, totals = outcomes.seat_values(), outcomes.totals()
    bounds: list[Bounds] = [
        _FREE,
        *((m.lowest, m.highest) for m in outcomes.header.measures),
        _SHARE,
        _SHARE,
    ]
    differences = list(_differences(outcomes, values, totals))
    tests = sum(d.result.p_value is not None for d in differences)
    deliberation = spec.deliberation
    return ExperimentReport(
        run=run.info.id,
        folder=str(run.folder),
        name=spec.name,
        game=spec.game,
        game_version=outcomes.header.game_version,
        seed=spec.seed,
        planned=spec.matches * len(spec.pairings),
        finished=outcomes.finished,
        failures=_failures(outcomes),
        policies={
            "willingness": deliberation.willingness,
            "votes": deliberation.votes,
            "tie": deliberation.tie,
            "no valid vote": deliberation.no_vote,
        },
        measures=_measures(outcomes, bounds),
        teams=tuple(_team(outcomes, team, values, bounds) for team in spec.teams),
        pairings=tuple(
            _pairing(outcomes, n, values[:, n], totals[:, n], bounds)
            for n in range(len(spec.pairings))
        ),
        differences=_corrected(differences),
        correction=f"Holm, {tests} tests" if tests > 1 else None,
        ratings=_ratings(outcomes, values[..., 0]),
        work=_work(outcomes),
        answerers=tuple(
            Answerer(model=model, provenance=provenance)
            for model, provenance in answerers(outcomes.provenances)
        ),
        notes=(*_notes(outcomes, values), *deaths_in_words(run.info.incidents)),
        incidents=run.info.incidents,
    )


def _measures(outcomes: Outcomes, bounds: Sequence[Bounds]) -> tuple[Measured, ...]:
    described = {
        SCORE: "points of the team in a match",
        **{m.name: m.description for m in outcomes.header.measures},
        CONSENSUS: "share of votes in which all members of the team agreed",
        INVALID: "share of polls, votes and actions whose answer stayed invalid",
    }
    return tuple(
        Measured(name=name, description=described[name], share=bound == _SHARE)
        for name, bound in zip(outcomes.names, bounds, strict=True)
    )


def _team(
    outcomes: Outcomes, team: TeamSpec, values: Floats, bounds: Sequence[Bounds]
) -> TeamReport:
    seats = _seats_of(outcomes, team.name)
    counts = outcomes.teams[team.name]
    return TeamReport(
        team=team.name,
        agents=_described(team),
        figures=_named(outcomes, _estimates(values[:, seats], bounds)),
        decisions=dict(counts.decisions),
        asked=counts.asked,
        invalid=counts.invalid,
        calls=counts.calls,
        prompt_tokens=counts.prompt_tokens,
        completion_tokens=counts.completion_tokens,
    )


def _described(team: TeamSpec) -> str:
    kinds = Counter(a.model if a.kind == LLM else a.kind for a in team.agents)
    return ", ".join(f"{count} {kind}" for kind, count in kinds.items())


def _seats_of(outcomes: Outcomes, team: str) -> NDArray[np.bool_]:
    """Where a team sits: (pairings, seats)."""
    return np.array([[name == team for name in pairing] for pairing in outcomes.spec.pairings])


def _pairing(
    outcomes: Outcomes, number: int, values: Floats, totals: Floats, bounds: list[Bounds]
) -> PairingReport:
    names = outcomes.spec.pairings[number]
    most = totals[:, 1:]
    shares = totals[:, :1] / np.where(most > 0, most, np.nan)
    flat = values.reshape(len(values), len(names) * len(bounds))  # there may be no match
    columns = np.concatenate([flat, totals[:, :1], shares], axis=1)
    *of_seats, total, welfare = _estimates(
        columns[:, None], [*len(names) * bounds, _FREE, (None, 1.0)]
    )
    width = len(bounds)
    return PairingReport(
        pairing=" vs ".join(names),
        matches=total.count,
        seats=tuple(
            SeatReport(
                seat=seat,
                team=team,
                figures=_named(outcomes, of_seats[n * width : (n + 1) * width]),
            )
            for n, (seat, team) in enumerate(zip(outcomes.spec.seats, names, strict=True))
        ),
        total=total,
        welfare=welfare if welfare.count else None,
    )


def _named(outcomes: Outcomes, estimates: Sequence[Estimate]) -> Mapping[str, Estimate]:
    return dict(zip(outcomes.names, estimates, strict=True))


def _estimates(values: Floats, bounds: Sequence[Bounds]) -> list[Estimate]:
    """The mean of every column; `values` has shape (seeds, matches and seats, columns)."""
    measured = ~np.isnan(values)
    sums = np.where(measured, values, 0.0).sum(axis=1)
    counts = measured.sum(axis=1)
    intervals: list[Interval | None] = [None] * len(bounds)
    if len(values) >= LEAST_FOR_INTERVAL:
        intervals = interval_of_means(sums, counts.astype(float), bounds=bounds)
    return [
        Estimate(
            value=float(total / count) if count else None,
            count=int(count),
            interval=interval,
            no_interval=None if interval else _no_interval(int(seeds)),
        )
        for total, count, seeds, interval in zip(
            sums.sum(axis=0),
            counts.sum(axis=0),
            (counts > 0).sum(axis=0),
            intervals,
            strict=True,
        )
    ]


def _no_interval(seeds: int) -> NoInterval:
    if not seeds:
        return "no value"
    return "all are equal" if seeds >= LEAST_FOR_INTERVAL else "too few seeds"


def _differences(outcomes: Outcomes, values: Floats, totals: Floats) -> Iterator[TeamDifference]:
    """Every two teams, compared in every way that the pairings allow."""
    names = (SCORE, *(m.name for m in outcomes.header.measures))
    values = values[..., : len(names)]
    for first, second in combinations([team.name for team in outcomes.spec.teams], 2):
        together = [
            n for n, pairing in enumerate(outcomes.spec.pairings) if {first, second} <= {*pairing}
        ]
        if together:
            of_first, of_second = (
                np.stack([_mean(values[:, n, _seats(outcomes, n, team)]) for n in together], axis=1)
                for team in (first, second)
            )
            yield from _each("head to head", (first, second), names, of_first, of_second)
        contexts = list(_contexts(outcomes, first, second))
        if contexts:
            before, after, seat = map(list, zip(*contexts, strict=True))
            yield from _each(
                "in place",
                (first, second),
                (*names, TOTAL),
                np.concatenate([values[:, before, seat], totals[:, before, :1]], axis=2),
                np.concatenate([values[:, after, seat], totals[:, after, :1]], axis=2),
            )


def _seats(outcomes: Outcomes, pairing: int, team: str) -> list[int]:
    return [n for n, name in enumerate(outcomes.spec.pairings[pairing]) if name == team]


def _contexts(outcomes: Outcomes, first: str, second: str) -> Iterator[tuple[int, int, int]]:
    """Two pairings and the seat in which they differ: by `second` instead of `first`."""
    numbers = {pairing: n for n, pairing in enumerate(outcomes.spec.pairings)}
    for pairing, n in numbers.items():
        for seat, name in enumerate(pairing):
            other = (*pairing[:seat], second, *pairing[seat + 1 :])
            if name == first and other in numbers:
                yield n, numbers[other], seat


def _each(
    comparison: Comparison,
    teams: tuple[str, str],
    names: Sequence[str],
    of_first: Floats,
    of_second: Floats,
) -> Iterator[TeamDifference]:
    """The difference in each measure; the arrays are (seeds, matches, measures).

    Only matches in which both teams have the measure count, and of a seed the mean over them.
    """
    both = ~np.isnan(of_first) & ~np.isnan(of_second)
    means = [_mean(np.where(both, side, np.nan)) for side in (of_first, of_second)]
    for column, name in enumerate(names):
        seeds = both[..., column].any(axis=1)
        if seeds.any():
            yield TeamDifference(
                comparison=comparison,
                first=teams[0],
                second=teams[1],
                measure=name,
                result=compare_means(means[0][seeds, column], means[1][seeds, column]),
                p_corrected=None,
            )


def _mean(values: Floats) -> Floats:
    """The mean over the second axis of three, NaN left out; NaN where there is nothing else."""
    measured = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        means: Floats = np.where(measured, values, 0.0).sum(axis=1) / measured.sum(axis=1)
    return means


def _corrected(differences: Sequence[TeamDifference]) -> tuple[TeamDifference, ...]:
    tested = [d.result.p_value for d in differences if d.result.p_value is not None]
    corrected = iter(holm(tested))
    return tuple(
        d if d.result.p_value is None else structs.replace(d, p_corrected=next(corrected))
        for d in differences
    )


def _ratings(outcomes: Outcomes, scores: Floats) -> tuple[Rating, ...]:
    teams = [team.name for team in outcomes.spec.teams]
    if len(teams) < 3:
        return ()
    wins, ties = _results(outcomes, scores)
    halves = wins + ties / 2
    if not all_met(halves.sum(axis=0)):
        return ()
    strengths = ELO * bradley_terry(halves.sum(axis=0))
    won, tied = wins.sum(axis=0), ties.sum(axis=0)
    ratings = []
    for n, interval in enumerate(intervals_of_strengths(halves)):
        why: NoInterval | Literal["never beaten", "never won"] | None = None
        if not halves[:, :, n].any():
            why = "never beaten"
        elif not halves[:, n].any():
            why = "never won"
        elif interval is None:
            why = _no_interval(len(halves))
        scaled = None
        if interval is not None and why is None:
            scaled = structs.replace(interval, low=ELO * interval.low, high=ELO * interval.high)
        ratings.append(
            Rating(
                team=teams[n],
                rating=Figure(value=float(strengths[n]), interval=scaled),
                no_interval=why,
                wins=int(won[n].sum()),
                ties=int(tied[n].sum()),
                losses=int(won[:, n].sum()),
            )
        )
    return tuple(sorted(ratings, key=lambda rating: -rating.rating.value))


def _results(outcomes: Outcomes, scores: Floats) -> tuple[Floats, Floats]:
    """How often each team beat, and tied with, each other one: both (seeds, teams, teams)."""
    teams = [team.name for team in outcomes.spec.teams]
    wins = np.zeros((len(scores), len(teams), len(teams)))
    ties = np.zeros_like(wins)
    for number, pairing in enumerate(outcomes.spec.pairings):
        for one, other in combinations(range(len(pairing)), 2):
            i, j = teams.index(pairing[one]), teams.index(pairing[other])
            if i == j:
                continue
            lead = scores[:, number, one] - scores[:, number, other]
            wins[:, i, j] += lead > 0
            wins[:, j, i] += lead < 0
            ties[:, i, j] += lead == 0
            ties[:, j, i] += lead == 0
    return wins, ties


def _work(outcomes: Outcomes) -> ExperimentWork:
    counts = outcomes.teams.values()
    seconds = outcomes.playing_seconds()
    ended = outcomes.finished + len(outcomes.failures)
    return ExperimentWork(
        calls=sum(team.calls for team in counts),
        failed_calls=outcomes.failed_calls,
        replayed=outcomes.replayed,
        shortened=outcomes.shortened,
        prompt_tokens=sum(team.prompt_tokens for team in counts),
        completion_tokens=sum(team.completion_tokens for team in counts),
        seconds=seconds,
        matches_per_hour=ended * 3600 / seconds if seconds else None,
        prefix_cache_hits=outcomes.cache_hits / outcomes.cache_queries
        if outcomes.cache_queries
        else None,
    )


def _failures(outcomes: Outcomes) -> tuple[MatchFailures, ...]:
    kinds = Counter(failure.kind for failure in outcomes.failures.values())
    examples: dict[str, str] = {}
    for failure in outcomes.failures.values():
        examples.setdefault(failure.kind, failure.message)
    return tuple(
        MatchFailures(kind=kind, count=count, example=examples[kind])
        for kind, count in kinds.most_common()
    )


def _notes(outcomes: Outcomes, values: Floats) -> Iterator[str]:
    spec = outcomes.spec
    planned = spec.matches * len(spec.pairings)
    if missing := planned - outcomes.finished - len(outcomes.failures):
        yield f"{missing:,} of {planned:,} matches have not been played yet"
    if outcomes.failures:
        yield (
            f"{len(outcomes.failures):,} of {planned:,} matches failed and are left out; if they "
            "failed because of what was played in them, the figures are biased"
        )
    seated = {
        team.name: {
            n for pairing in spec.pairings for n, name in enumerate(pairing) if name == team.name
        }
        for team in spec.teams
    }
    if len({team for pairing in spec.pairings for team in pairing}) > 1 and any(
        seats and len(seats) < len(spec.seats) for seats in seated.values()
    ):
        yield "not every team sat in every seat: differences between teams include those of seats"
    if len(spec.teams) > 2 and len(values) and not _ratings(outcomes, values[..., 0]):
        yield "no ratings: some teams have not met, not even through others"
    if not all(record.seeded for record in outcomes.provenances if record.model != HUMAN):
        yield "an engine does not support seeds: the same answers cannot be drawn again"
    if outcomes.diverged:
        yield (
            f"{outcomes.diverged:,} of {outcomes.finished:,} matches left another run's record; a "
            "replay (--html) says where"
        )
    for repair in outcomes.repairs:
        yield (
            f"the journal's end was broken, and repaired: {repair.size:,} bytes were moved to "
            f"{repair.kept}"
        )
