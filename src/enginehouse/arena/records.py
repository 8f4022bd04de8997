"""The lines of an experiment's journal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from enginehouse.core.errors import ConfigurationError
from enginehouse.core.sampler import Provenance, SampleRequest, SampleResponse
from enginehouse.core.sampling import SamplingParameters
from enginehouse.games.base import Action, MeasureInfo

JOURNAL_FORMAT = 1

CallKind = Literal["willingness", "opinion", "vote", "action"]
Source = Literal["majority", "tie", "default", "single", "script", "human"]
"""How a decision came about.

`majority` of the votes; `tie` and `default` (no valid vote) by the experiment's policies; `single`
by a lone LLM agent; `script` by a team of scripts, and `human` by a lone person.
"""
LLM = "llm"
HUMAN = "human"
RANDOM = "random"
"""The policy of a seeded draw."""


class CallKey(msgspec.Struct, frozen=True, kw_only=True):
    """Which call of which match: the same whenever the match is played.

    A journal has at most one answer for each key that counts: the last. `step` numbers the polls
    and opinions within one turn's deliberation; `attempt` numbers the requests that one answer
    took: 1 when an invalid vote was asked for again, up to 4 for an action (see tools/calling.py).
    """

    match: int
    turn: int
    seat: str
    agent: int
    kind: CallKind
    step: int = 0
    attempt: int = 0


class CallFailure(msgspec.Struct, frozen=True, kw_only=True):
    """The error that a call ended with, after its retries."""

    kind: str
    message: str


class ProvenanceRecord(msgspec.Struct, frozen=True, kw_only=True, tag="provenance"):
    """Who answers for a model of the experiment in one session; later calls refer to `id`.

    `seeded` is false if the engine does not support seeds, so that none was sent.
    """

    id: int
    model: str
    provenance: Provenance
    seeded: bool


class CallRecord(msgspec.Struct, frozen=True, kw_only=True, tag="call", omit_defaults=True):
    """One request to a model, what came back, and how it was read.

    `value` is the answer as it was read (a willingness, an option, an opinion's text without its
    reasoning); None if it is invalid, and for an action, which the turn records. `read_by` names
    the way ("choice", "schema", "parser", "native", "constrained", "prompted"). `dropped` is how
    many of the oldest texts of the history were left out of the prompt. `replayed`: a cassette
    answered.
    """

    key: CallKey
    provenance: int
    request: SampleRequest
    response: SampleResponse | None = None
    failure: CallFailure | None = None
    value: Any = None
    read_by: str = ""
    dropped: int = 0
    replayed: bool = False


class Poll(msgspec.Struct, frozen=True, kw_only=True):
    """One poll of who wishes to speak: by agent, 0 to 3; None where the answer was invalid.

    Agents that had spoken already are missing. `speaker` is the agent chosen.
    """

    willingness: Mapping[int, int | None]
    speaker: int


class Opinion(msgspec.Struct, frozen=True, kw_only=True):
    """What one agent said to its team."""

    agent: int
    text: str


class Deliberation(msgspec.Struct, frozen=True, kw_only=True):
    """How a team came to its decision. votes[i] is agent i's; None if it was invalid."""

    polls: tuple[Poll, ...]
    opinions: tuple[Opinion, ...]
    votes: tuple[str | None, ...]


class DecisionRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one seat decided in one turn, and how."""

    action: Action
    source: Source
    deliberation: Deliberation | None = None


class TurnRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One turn: every seat's decision, what happened in words, and the scores after it."""

    decisions: Mapping[str, DecisionRecord]
    event: str
    scores: Mapping[str, float]


class MatchRecord(msgspec.Struct, frozen=True, kw_only=True, tag="match", omit_defaults=True):
    """One match that has ended. `teams` maps each seat to the team that sat there.

    `pairing` is the same for all matches with the same teams in the same seats; matches with the
    same `seed` are paired. `measures` has the game's by seat, `welfare` the total of all scores and
    the largest that the settings allow. With a `failure` the match ended early and gives no
    figures. `started` is in seconds since the epoch; `seconds` are those of the session that ended
    the match.
    """

    match: int
    pairing: str
    seed: int
    teams: Mapping[str, str]
    turns: tuple[TurnRecord, ...]
    scores: Mapping[str, float]
    measures: Mapping[str, Mapping[str, float | None]]
    welfare: tuple[float, float | None]
    started: float
    seconds: float
    calls: int = 0
    invalid: Mapping[str, int] = msgspec.field(default_factory=dict)
    """By seat, the answers that stayed invalid."""
    asked: Mapping[str, int] = msgspec.field(default_factory=dict)
    """By seat, the willingness polls, votes and actions that were asked for."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    diverged: Mapping[str, CallKey] = msgspec.field(default_factory=dict)
    """Of a match that a cassette replayed: by seat, the first call that it could not answer."""
    failure: CallFailure | None = None


class ModelSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A model that answers for agents: a name within the experiment, and how it is sampled.

    `parameters.seed` is replaced by one that depends on the match and the call, so that matches
    with the same seed can be compared.
    """

    name: str
    parameters: SamplingParameters = SamplingParameters(temperature=0.7, max_tokens=1024)


class AgentSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One member of a team: "llm", whose `model` names a ModelSpec; "human"; or a script's name."""

    kind: str
    model: str | None = None


class TeamSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A team that may take a seat."""

    name: str
    agents: tuple[AgentSpec, ...]


class DeliberationSpec(msgspec.Struct, frozen=True, kw_only=True):
    """How a team of several agents decides; see docs/experiments.md.

    `willingness` is how the next speaker is found: by polls, by a seeded order, or in the order of
    the members' numbers. `votes` says whether votes are constrained where the engine supports it,
    or always parsed from free text.
    `tie` and `no_vote` are "random" (a seeded draw, for a tie among the tied options) or the option
    that is then taken.
    """

    willingness: Literal["poll", "order", "none"] = "poll"
    votes: Literal["constrained", "parsed"] = "constrained"
    tie: str = RANDOM
    no_vote: str = RANDOM


class ExperimentSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that determines an experiment's matches, apart from who answers."""

    name: str
    game: str
    settings: dict[str, Any]
    seats: tuple[str, ...]
    models: tuple[ModelSpec, ...] = ()
    teams: tuple[TeamSpec, ...]
    pairings: tuple[tuple[str, ...], ...]
    """For each pairing, the name of the team in every seat."""
    matches: int
    """Matches of each pairing; match i of every pairing has the same seed."""
    seed: int = 0
    deliberation: DeliberationSpec = DeliberationSpec()

    def __post_init__(self) -> None:
        teams = {team.name: team for team in self.teams}
        models = {model.name for model in self.models}
        seated = {name for pairing in self.pairings for name in pairing}
        named = {agent.model for team in self.teams for agent in team.agents if agent.model}
        checks = (
            (self.matches >= 1, "an experiment needs at least one match"),
            (bool(self.pairings), "an experiment needs at least one pairing"),
            (len(teams) == len(self.teams), "two teams have the same name"),
            (len(models) == len(self.models), "two models have the same name"),
            (all(team.agents for team in self.teams), "a team needs at least one agent"),
            (
                all(len(pairing) == len(self.seats) for pairing in self.pairings),
                "a pairing needs a team for each seat",
            ),
            (seated <= set(teams), f"unknown teams: {', '.join(sorted(seated - set(teams)))}"),
            (named <= models, f"unknown models: {', '.join(sorted(named - models))}"),
            (
                all(
                    (agent.model is not None) == (agent.kind == LLM)
                    for team in self.teams
                    for agent in team.agents
                ),
                "an llm agent needs a model, and no other agent has one",
            ),
        )
        for valid, message in checks:
            if not valid:
                raise ConfigurationError(message)


class HeaderRecord(msgspec.Struct, frozen=True, kw_only=True, tag="experiment"):
    """The first line: what was begun, by which version of the game, and what it measures."""

    format: int
    run: str
    game_version: int
    measures: tuple[MeasureInfo, ...]
    spec: ExperimentSpec


class PrefixCacheRecord(msgspec.Struct, frozen=True, kw_only=True, tag="prefix_cache"):
    """The prompt tokens that a server looked up in its prefix cache in one session, and found."""

    url: str
    queries: int
    hits: int


class RepairRecord(msgspec.Struct, frozen=True, kw_only=True, tag="repair"):
    """A damaged end of the journal, of `size` bytes, was moved to the file `kept` beside it."""

    size: int
    kept: str


Record = (
    HeaderRecord | ProvenanceRecord | CallRecord | MatchRecord | PrefixCacheRecord | RepairRecord
)
