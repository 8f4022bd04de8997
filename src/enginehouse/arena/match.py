"""One match, from its start to its record."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from enginehouse.arena.calls import OUTAGES, MatchCalls
from enginehouse.arena.deliberation import Agent, TeamTurn, decide, decide_by_script
from enginehouse.arena.prompts import system_message
from enginehouse.arena.records import (
    CallFailure,
    DecisionRecord,
    DeliberationSpec,
    MatchRecord,
    TurnRecord,
)
from enginehouse.arena.together import run_together
from enginehouse.core.errors import WireError
from enginehouse.games.base import Game


@dataclass(frozen=True, kw_only=True)
class Match:
    """A match to play: who sits where, and the seed of everything that is drawn."""

    number: int
    pairing: str
    seed: int
    teams: Mapping[str, str]
    agents: Mapping[str, tuple[Agent, ...]]

    @property
    def is_scripted(self) -> bool:
        """Whether all teams follow scripts, so that no calls are made."""
        return all(map(_is_scripted, self.agents.values()))

    @property
    def has_teams(self) -> bool:
        """Whether a team in it has to agree on something."""
        return any(len(agents) > 1 and not _is_scripted(agents) for agents in self.agents.values())


def _is_scripted(agents: Sequence[Agent]) -> bool:
    return all(agent.script is not None for agent in agents)


async def play_match(
    match: Match, *, game: Game, spec: DeliberationSpec, calls: MatchCalls
) -> MatchRecord:
    """Play a match to its end. A call that fails ends it early, as its record's failure.

    Raises what ends an experiment (OUTAGES), and StoreError.
    """
    started, clock = time.time(), time.monotonic()
    state = game.start(match.seed)
    first = next(iter(game.decisions(state).values()), None)
    system = system_message(game.rules(), spec, teams=match.has_teams, decision=first)
    turns: list[TurnRecord] = []
    failure: CallFailure | None = None
    try:
        while game.decisions(state):
            decisions = await _decide(
                match,
                game=game,
                state=state,
                turn=len(turns),
                system=system,
                spec=spec,
                calls=calls,
            )
            state = game.apply(state, {seat: d.action for seat, d in decisions.items()})
            turns.append(
                TurnRecord(
                    decisions=decisions,
                    event=_event(game, state, match),
                    scores=game.scores(state),
                )
            )
    except WireError as error:
        if isinstance(error, OUTAGES):
            raise
        failure = CallFailure(kind=type(error).__name__, message=error.message)
    return MatchRecord(
        match=match.number,
        pairing=match.pairing,
        seed=match.seed,
        teams=match.teams,
        turns=tuple(turns),
        scores=game.scores(state),
        measures={} if failure else game.measures(state),
        welfare=game.welfare(state),
        started=started,
        seconds=time.monotonic() - clock,
        calls=calls.figures.calls,
        invalid=dict(calls.figures.invalid),
        asked=dict(calls.figures.asked),
        prompt_tokens=calls.figures.prompt_tokens,
        completion_tokens=calls.figures.completion_tokens,
        diverged=dict(calls.diverged),
        failure=failure,
    )


def _event(game: Game, state: Any, match: Match) -> str:
    """What happened last, as the seats were told: once if all were told the same."""
    told = [game.history(state, seat)[-1:] for seat in match.teams]
    return "\n".join(dict.fromkeys(text for texts in told for text in texts))


async def _decide(
    match: Match,
    *,
    game: Game,
    state: Any,
    turn: int,
    system: str,
    spec: DeliberationSpec,
    calls: MatchCalls,
) -> dict[str, DecisionRecord]:
    """What every seat decides in one turn; all of them at once."""
    past = game.past_actions(state)
    decided: dict[str, DecisionRecord] = {}
    asked: dict[str, TeamTurn] = {}
    wanted = game.decisions(state)
    for seat, decision in wanted.items():
        scripted = _is_scripted(match.agents[seat])
        team = TeamTurn(
            match=match.number,
            turn=turn,
            seat=seat,
            agents=match.agents[seat],
            decision=decision,
            past=past,
            system=system,
            history=() if scripted else game.history(state, seat),
            situation="" if scripted else game.situation(state, seat),
            seed=match.seed,
            spec=spec,
        )
        if scripted:
            decided[seat] = decide_by_script(team)
        else:
            asked[seat] = team
    answers = await run_together(decide(team, calls) for team in asked.values())
    decided.update(zip(asked, answers, strict=True))
    return {seat: decided[seat] for seat in wanted}
