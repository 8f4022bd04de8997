"""The figures of an experiment's matches as arrays, read from its journal in one pass.

Of each match a few numbers are kept, and nothing of its calls and turns, so that memory does not
depend on how much was said.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from enginehouse.arena.recordings import require_readable
from enginehouse.arena.records import (
    CallFailure,
    ExperimentSpec,
    HeaderRecord,
    PrefixCacheRecord,
    ProvenanceRecord,
    RepairRecord,
    Source,
)
from enginehouse.core.errors import StoreError
from enginehouse.core.sampler import Provenance
from enginehouse.statistics.intervals import Floats
from enginehouse.store.journal import read_journal

SCORE, CONSENSUS, INVALID = "score", "consensus", "invalid_rate"


# Parts of the records: what is not named here is skipped without being decoded.
class _Key(msgspec.Struct, frozen=True, gc=False):
    match: int
    seat: str


class _Tokens(msgspec.Struct, frozen=True, gc=False):
    prompt_tokens: int
    completion_tokens: int


class _Call(msgspec.Struct, frozen=True, tag="call"):
    key: _Key
    response: _Tokens | None = None
    dropped: int = 0
    replayed: bool = False


class _Deliberation(msgspec.Struct, frozen=True):
    votes: tuple[str | None, ...]


class _Decision(msgspec.Struct, frozen=True):
    source: Source
    deliberation: _Deliberation | None = None


class _Turn(msgspec.Struct, frozen=True):
    decisions: Mapping[str, _Decision]


class _Match(msgspec.Struct, frozen=True, tag="match"):
    match: int
    seed: int
    teams: Mapping[str, str]
    turns: tuple[_Turn, ...]
    scores: Mapping[str, float]
    measures: Mapping[str, Mapping[str, float | None]]
    welfare: tuple[float, float | None]
    started: float
    seconds: float
    invalid: Mapping[str, int] = {}
    asked: Mapping[str, int] = {}
    diverged: Mapping[str, Any] = {}
    failure: CallFailure | None = None


_Record = HeaderRecord | ProvenanceRecord | _Call | _Match | PrefixCacheRecord | RepairRecord


class TeamCounts(msgspec.Struct, kw_only=True):
    """What one team's decisions and calls add up to, as in `TeamReport`."""

    decisions: Counter[str] = msgspec.field(default_factory=Counter)
    asked: int = 0
    invalid: int = 0
    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Outcomes:
    """What a journal holds. `names` are the measures of a seat, in the order of the columns."""

    def __init__(self, header: HeaderRecord) -> None:
        self.header = header
        self.spec: ExperimentSpec = header.spec
        self.names = (SCORE, *(m.name for m in header.measures), CONSENSUS, INVALID)
        self.teams = {team.name: TeamCounts() for team in self.spec.teams}
        self.failures: dict[int, CallFailure] = {}
        self.provenances: list[ProvenanceRecord] = []
        self.repairs: list[RepairRecord] = []
        self.failed_calls = self.replayed = self.shortened = self.diverged = 0
        self.cache_queries = self.cache_hits = 0
        self._pairings = {pairing: n for n, pairing in enumerate(self.spec.pairings)}
        self._finished: set[int] = set()
        self._seeds: dict[int, int] = {}
        self._places = array("q")  # of each row: seed's number, pairing's number
        self._figures = array("d")  # of each row: total, its maximum, then each seat's measures
        self._played = array("d")  # of each match that ended in any way: start, end

    @property
    def finished(self) -> int:
        """How many matches have figures."""
        return len(self._finished)

    def seat_values(self) -> Floats:
        """Every measure: (seeds, pairings, seats, measures); NaN where there is none."""
        return self._cube()[..., 2:].reshape(*self._shape(), len(self.spec.seats), len(self.names))

    def totals(self) -> Floats:
        """The total of all scores and its maximum: (seeds, pairings, 2); NaN where none."""
        return self._cube()[..., :2]

    def playing_seconds(self) -> float:
        """The time in which at least one match was played."""
        if not self._played:
            return 0.0
        spans = np.frombuffer(self._played).reshape(-1, 2)
        spans = spans[np.argsort(spans[:, 0], kind="stable")]
        ends = np.maximum.accumulate(spans[:, 1])
        begins = np.maximum(spans[1:, 0], ends[:-1])
        first = float(spans[0, 1] - spans[0, 0])
        return first + float(np.maximum(spans[1:, 1] - begins, 0.0).sum())

    def add_call(self, call: _Call) -> None:
        """Count one call."""
        self.shortened += call.dropped > 0
        if call.replayed:
            self.replayed += 1
            return
        # A match's number says its pairing: see arena/experiment.py.
        pairing = self.spec.pairings[call.key.match % len(self.spec.pairings)]
        team = self.teams[pairing[self.spec.seats.index(call.key.seat)]]
        team.calls += 1
        if call.response is None:
            self.failed_calls += 1
        else:
            team.prompt_tokens += call.response.prompt_tokens
            team.completion_tokens += call.response.completion_tokens

    def add_match(self, match: _Match) -> None:
        """Take a match's figures. One that failed has none; played again, it replaces itself."""
        self._played.extend((match.started, match.started + match.seconds))
        if match.failure is not None:
            self.failures[match.match] = match.failure
            return
        self.failures.pop(match.match, None)
        self.diverged += bool(match.diverged)
        total, most = match.welfare
        figures = [total, math.nan if most is None else most]
        for seat in self.spec.seats:
            figures += self._of_seat(match, seat)
        place = (
            self._seeds.setdefault(match.seed, len(self._seeds)),
            self._pairings[tuple(match.teams[seat] for seat in self.spec.seats)],
        )
        self._finished.add(match.match)
        self._places.extend(place)
        self._figures.extend(figures)

    def _of_seat(self, match: _Match, seat: str) -> list[float]:
        """The seat's measures; also counts its team's decisions."""
        counts = self.teams[match.teams[seat]]
        voted = unanimous = 0
        for turn in match.turns:
            decision = turn.decisions.get(seat)
            if decision is None:
                continue
            counts.decisions[decision.source] += 1
            if decision.deliberation is not None and len(decision.deliberation.votes) > 1:
                votes = decision.deliberation.votes
                voted += 1
                unanimous += votes[0] is not None and len(set(votes)) == 1
        asked, invalid = match.asked.get(seat, 0), match.invalid.get(seat, 0)
        counts.asked += asked
        counts.invalid += invalid
        measures = match.measures[seat]
        values = [measures.get(measure.name) for measure in self.header.measures]
        return [
            match.scores[seat],
            *(math.nan if value is None else value for value in values),
            unanimous / voted if voted else math.nan,
            invalid / asked if asked else math.nan,
        ]

    def _shape(self) -> tuple[int, int]:
        return len(self._seeds), len(self.spec.pairings)

    def _cube(self) -> Floats:
        width = 2 + len(self.spec.seats) * len(self.names)
        cube = np.full((*self._shape(), width), math.nan)
        if self._finished:
            seeds, pairings = np.frombuffer(self._places, dtype=np.int64).reshape(-1, 2).T
            cube[seeds, pairings] = np.frombuffer(self._figures).reshape(-1, width)
        return cube


def read_outcomes(path: Path) -> Outcomes:
    """Everything that a report needs, in one pass. Raises StoreError. Blocking."""
    outcomes: Outcomes | None = None
    for entry in read_journal(path, _Record):
        record: Any = entry.record
        if isinstance(record, HeaderRecord):
            require_readable(record)
            outcomes = Outcomes(record)
        elif outcomes is None:
            break
        elif isinstance(record, _Call):
            outcomes.add_call(record)
        elif isinstance(record, _Match):
            outcomes.add_match(record)
        elif isinstance(record, ProvenanceRecord):
            outcomes.provenances.append(record)
        elif isinstance(record, PrefixCacheRecord):
            outcomes.cache_queries += record.queries
            outcomes.cache_hits += record.hits
        elif isinstance(record, RepairRecord):
            outcomes.repairs.append(record)
    if outcomes is None:
        raise StoreError(
            f"{path} has no experiment",
            why="the journal is missing, or does not begin with an experiment's header",
            fix="name the run of an experiment; `enginehouse runs` lists all runs",
        )
    return outcomes


def answerers(provenances: list[ProvenanceRecord]) -> list[tuple[str, Provenance]]:
    """Every different model and provenance, in order."""
    different: list[tuple[str, Provenance]] = []
    for record in provenances:
        pair = (record.model, record.provenance)
        if pair not in different:
            different.append(pair)
    return different
