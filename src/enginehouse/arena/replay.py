"""The matches of a journal, as they were played."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from enginehouse.arena.records import DecisionRecord, MatchRecord
from enginehouse.games.base import Action
from enginehouse.results.replay import MatchReplay, SeatTurn, Speech, TurnReplay
from enginehouse.store.journal import read_journal, read_record


class _Line(msgspec.Struct, frozen=True):
    """Any record of the journal; the rest of it is skipped without being decoded."""

    type: str
    match: int = -1


def replay_matches(journal: Path) -> Iterator[MatchReplay]:
    """Every match that has ended, by number; one match is in memory at a time.

    Of a match that failed and was played again, the last. Raises StoreError. Blocking.
    """
    offsets = {
        entry.record.match: entry.offset
        for entry in read_journal(journal, _Line)
        if entry.record.type == "match"
    }
    for _, offset in sorted(offsets.items()):
        yield _replay(read_record(journal, MatchRecord, offset=offset))


def _replay(match: MatchRecord) -> MatchReplay:
    total, largest = match.welfare
    return MatchReplay(
        match=match.match,
        pairing=match.pairing,
        seed=match.seed,
        teams=match.teams,
        turns=tuple(
            TurnReplay(
                seats=tuple(
                    _seat_turn(seat, match.teams[seat], decision)
                    for seat, decision in turn.decisions.items()
                ),
                event=turn.event,
                scores=turn.scores,
            )
            for turn in match.turns
        ),
        scores=match.scores,
        total=total,
        largest_total=largest,
        calls=match.calls,
        failure=f"{match.failure.kind}: {match.failure.message}" if match.failure else None,
        diverged={
            seat: f"round {key.turn + 1}, {key.kind} of member {key.agent + 1}"
            for seat, key in match.diverged.items()
        },
    )


def _seat_turn(seat: str, team: str, decision: DecisionRecord) -> SeatTurn:
    speeches: tuple[Speech, ...] = ()
    votes: tuple[str | None, ...] = ()
    if (talk := decision.deliberation) is not None:
        votes = talk.votes
        speeches = tuple(
            Speech(
                willingness=talk.polls[n].willingness if talk.polls else None,
                speaker=opinion.agent,
                text=opinion.text,
            )
            for n, opinion in enumerate(talk.opinions)
        )
    return SeatTurn(
        seat=seat,
        team=team,
        action=_in_words(decision.action),
        source=decision.source,
        speeches=speeches,
        votes=votes,
    )


def _in_words(action: Action) -> str:
    if isinstance(action, str):
        return action
    return f"{action.name} {msgspec.json.encode(action.arguments).decode()}"
