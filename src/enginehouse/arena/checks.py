"""Whether an experiment can be played, found out before anything is asked."""

from __future__ import annotations

from enginehouse.arena.deliberation import Agent, TeamTurn
from enginehouse.arena.lineup import match_seed
from enginehouse.arena.records import HUMAN, LLM, RANDOM, ExperimentSpec, TeamSpec
from enginehouse.arena.scripts import make_script
from enginehouse.core.errors import ConfigurationError, UnknownNameError
from enginehouse.games.base import Decision, Game, Pick


def check_experiment(spec: ExperimentSpec, *, game: Game) -> None:
    """Raise ConfigurationError if the experiment cannot be played."""
    info = game.info
    if not info.least_seats <= len(spec.seats) <= info.most_seats:
        raise ConfigurationError(
            f"{info.name} is played by {info.least_seats} to {info.most_seats} teams, not "
            f"{len(spec.seats)}"
        )
    policies = (spec.deliberation.tie, spec.deliberation.no_vote)
    for seat, decision in game.decisions(game.start(match_seed(spec, 0))).items():
        if isinstance(decision, Pick):
            for policy in policies:
                if policy != RANDOM and policy not in decision.options:
                    raise UnknownNameError("option", policy, (*decision.options, RANDOM))
        for team in spec.teams:
            if len(team.agents) > 1 and not (info.teams and isinstance(decision, Pick)):
                raise ConfigurationError(
                    f"team {team.name} has {len(team.agents)} agents, and {info.name} is played by "
                    "one for each team",
                    fix="give the team a size of 1",
                )
            _try_scripts(spec, team, seat=seat, decision=decision)


def _try_scripts(spec: ExperimentSpec, team: TeamSpec, *, seat: str, decision: Decision) -> None:
    """Have every script of a team decide once."""
    agents = tuple(
        Agent(kind=agent.kind, script=make_script(agent.kind))
        for agent in team.agents
        if agent.kind not in (LLM, HUMAN)
    )
    turn = TeamTurn(
        match=0,
        turn=0,
        seat=seat,
        agents=agents,
        decision=decision,
        past=(),
        system="",
        history=(),
        situation="",
        seed=0,
        spec=spec.deliberation,
    )
    for number in range(len(agents)):
        turn.scripted(number)
