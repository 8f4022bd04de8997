"""The lines of an experiment's journal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from enginehouse.core.sampler import Provenance, SampleRequest, SampleResponse
from enginehouse.games.base import Action

JOURNAL_FORMAT = 1

CallKind = Literal["willingness", "opinion", "vote", "action"]
Source = Literal["majority", "tie", "default", "single", "script", "human"]
"""How a decision came about.

`majority` of the votes; `tie` and `default` (no valid vote) by the experiment's policies; `single`
by a lone LLM agent; `script` and `human` without a model.
"""


class CallKey(msgspec.Struct, frozen=True, kw_only=True):
    """Which call of which match: unique in a journal, and the same whenever a match is played.

    `step` numbers the polls and opinions within one turn's deliberation; `attempt` is 1 when an
    invalid answer was asked for again.
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
    """Who answers for a team; later calls of the team refer to `id`."""

    id: int
    team: str
    provenance: Provenance


class CallRecord(msgspec.Struct, frozen=True, kw_only=True, tag="call", omit_defaults=True):
    """One request to a model, what came back, and how it was read.

    `value` is the answer as it was read (a willingness, an option, an opinion's text without its
    reasoning); None if it is invalid. `read_by` names the way ("choice", "schema", "parser",
    "native", "constrained", "prompted").
    """

    key: CallKey
    provenance: int
    request: SampleRequest
    response: SampleResponse | None = None
    failure: CallFailure | None = None
    value: Any = None
    read_by: str = ""


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
    figures.
    """

    match: int
    pairing: str
    seed: int
    teams: Mapping[str, str]
    turns: tuple[TurnRecord, ...]
    scores: Mapping[str, float]
    measures: Mapping[str, Mapping[str, float | None]]
    welfare: tuple[float, float]
    started: float
    seconds: float
    calls: int = 0
    invalid: Mapping[str, int] = msgspec.field(default_factory=dict)
    """By seat, the answers that stayed invalid."""
    asked: Mapping[str, int] = msgspec.field(default_factory=dict)
    """By seat, the willingness polls, votes and actions that were asked for."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    failure: CallFailure | None = None


class TeamSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A team that may take a seat: `agents` are one description for each member.

    A description is "llm", a script's name ("always RED", "tit for tat", "random"), or "human".
    """

    name: str
    agents: tuple[str, ...]
    model: str | None = None


class ExperimentSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that determines an experiment's matches, apart from who answers."""

    name: str
    game: str
    settings: dict[str, Any]
    seats: tuple[str, ...]
    teams: tuple[TeamSpec, ...]
    pairings: tuple[tuple[str, ...], ...]
    """For each pairing, the name of the team in every seat."""
    matches: int
    """Matches of each pairing; match i of every pairing has the same seed."""
    seed: int = 0


class HeaderRecord(msgspec.Struct, frozen=True, kw_only=True, tag="experiment"):
    """The first line: what was begun, by which version of the game."""

    format: int
    run: str
    game_version: int
    spec: ExperimentSpec


Record = HeaderRecord | ProvenanceRecord | CallRecord | MatchRecord
