"""What an experiment's matches show, as plain data (every struct here is JSON)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from enginehouse.core.incidents import Incident
from enginehouse.core.sampler import Provenance
from enginehouse.results.summary import Figure
from enginehouse.statistics.intervals import Interval
from enginehouse.statistics.paired import PairedResult

Comparison = Literal["in place", "head to head"]
"""How two teams are compared on the same seeds.

`in place`: one team instead of the other, in the same seat and with the same other teams, so in
two matches. `head to head`: both teams in the same match.
"""

NoInterval = Literal["too few seeds", "all are equal", "no value"]
"""Why there is no interval: fewer than 5 seeds, a value that does not vary, or none at all."""


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """Something that is measured; `share` says that its values are shares from 0 to 1."""

    name: str
    description: str
    share: bool


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """A mean over matches: of `count` values, one for each match and seat that has one.

    `value` is None without any. `interval` varies whole seeds; it is None for the reason in
    `no_interval`.
    """

    value: float | None
    count: int
    interval: Interval | None
    no_interval: NoInterval | None


class SeatReport(msgspec.Struct, frozen=True, kw_only=True):
    """A team in one seat of a pairing. `figures` has an estimate for every measure by name."""

    seat: str
    team: str
    figures: Mapping[str, Estimate]


class PairingReport(msgspec.Struct, frozen=True, kw_only=True):
    """The matches with the same teams in the same seats; `matches` of them give the figures.

    `total` is the mean total of all scores; `welfare` is its share of the largest total that the
    settings allow, None if that is not known.
    """

    pairing: str
    matches: int
    seats: tuple[SeatReport, ...]
    total: Estimate
    welfare: Estimate | None


class TeamReport(msgspec.Struct, frozen=True, kw_only=True):
    """A team in all its matches, whatever its seat.

    `agents` describe the members, as in "5 smollm2" or "1 always RED". `decisions` counts how its
    decisions came about (majority, tie, default, single, script, human); `invalid` of `asked`
    polls, votes and actions stayed invalid. `calls` and the tokens are those of its agents, those
    of unfinished matches included.
    """

    team: str
    agents: str
    figures: Mapping[str, Estimate]
    decisions: Mapping[str, int]
    asked: int
    invalid: int
    calls: int
    prompt_tokens: int
    completion_tokens: int


class TeamDifference(msgspec.Struct, frozen=True, kw_only=True):
    """Two teams on the same seeds: `second` - `first`, in `result` in that order.

    Its pairs are seeds. `measure` "total" is the total of all scores. `p_corrected` is the p-value
    after Holm's correction over all differences of the report.
    """

    comparison: Comparison
    first: str
    second: str
    measure: str
    result: PairedResult
    p_corrected: float | None


class Rating(msgspec.Struct, frozen=True, kw_only=True):
    """A team's Bradley-Terry strength on the Elo scale (400 points are odds of 10 to 1), mean 0.

    The team with the higher score wins. `wins`, `ties` and `losses` are against other teams. A team
    that won or lost every match has no interval: the matches bound its strength on one side only.
    """

    team: str
    rating: Figure
    no_interval: NoInterval | Literal["never beaten", "never won"] | None
    wins: int
    ties: int
    losses: int


class ExperimentWork(msgspec.Struct, frozen=True, kw_only=True):
    """What the experiment took. Calls that a cassette answered count as `replayed` only.

    `seconds` is the time in which at least one match was played, pauses left out.
    `prefix_cache_hits` is the share of the prompts' tokens that the servers found in their prefix
    caches, None if no server reported it. `shortened` counts calls whose oldest history was left
    out to fit the context.
    """

    calls: int
    failed_calls: int
    replayed: int
    shortened: int
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    matches_per_hour: float | None
    prefix_cache_hits: float | None


class Answerer(msgspec.Struct, frozen=True, kw_only=True):
    """Who answered for a model of the experiment."""

    model: str
    provenance: Provenance


class MatchFailures(msgspec.Struct, frozen=True, kw_only=True):
    """How many matches ended with an error of one kind, and the first one's message."""

    kind: str
    count: int
    example: str


class ExperimentReport(msgspec.Struct, frozen=True, kw_only=True):
    """One experiment's result.

    Of `planned` matches `finished` give figures, and those in `failures` ended early. `policies`
    name how teams deliberate and what is done about ties and invalid votes. `measures` are the
    keys of all figures. `differences` are paired by seed; `correction` is "Holm, n tests", None for
    fewer than two. `ratings` are empty for two teams, and where not all can be compared.
    `incidents`: our own servers that died during the experiment.
    """

    run: str
    folder: str
    name: str
    game: str
    game_version: int
    seed: int
    planned: int
    finished: int
    failures: tuple[MatchFailures, ...]
    policies: Mapping[str, str]
    measures: tuple[Measured, ...]
    teams: tuple[TeamReport, ...]
    pairings: tuple[PairingReport, ...]
    differences: tuple[TeamDifference, ...]
    correction: str | None
    ratings: tuple[Rating, ...]
    work: ExperimentWork
    answerers: tuple[Answerer, ...]
    notes: tuple[str, ...]
    incidents: tuple[Incident, ...] = ()
