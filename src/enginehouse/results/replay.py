"""Matches as they were played, to be shown round by round (every struct here is JSON)."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec


class Speech(msgspec.Struct, frozen=True, kw_only=True):
    """One member's opinion, and the poll that chose the speaker.

    `willingness` is, by member, from 0 to 3, None where the answer was invalid; members that had
    spoken already are missing. It is None where nobody was polled.
    """

    willingness: Mapping[int, int | None] | None
    speaker: int
    text: str


class SeatTurn(msgspec.Struct, frozen=True, kw_only=True):
    """One team's decision in a turn: what was said, who voted for what, and how it came about.

    votes[i] is member i's, None if it was invalid; a team that does not deliberate has none.
    """

    seat: str
    team: str
    action: str
    source: str
    speeches: tuple[Speech, ...]
    votes: tuple[str | None, ...]


class TurnReplay(msgspec.Struct, frozen=True, kw_only=True):
    """One turn: every seat's decision, what happened, and the scores after it."""

    seats: tuple[SeatTurn, ...]
    event: str
    scores: Mapping[str, float]


class MatchReplay(msgspec.Struct, frozen=True, kw_only=True):
    """One match. `failure` says why it ended early.

    `diverged`: of a match that another run's record answered for, by seat the first call that the
    record could not answer, in words.
    """

    match: int
    pairing: str
    seed: int
    teams: Mapping[str, str]
    turns: tuple[TurnReplay, ...]
    scores: Mapping[str, float]
    total: float
    largest_total: float | None
    calls: int
    failure: str | None
    diverged: Mapping[str, str]
