"""Who plays in a session: the models that answer, and the agents of each match."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from enginehouse.arena.deliberation import Agent
from enginehouse.arena.human import PERSON, Human, HumanSampler
from enginehouse.arena.journal import ExperimentJournal
from enginehouse.arena.match import Match
from enginehouse.arena.models import ActiveModel, ContextLimit, Model
from enginehouse.arena.recordings import Cassette
from enginehouse.arena.records import (
    HUMAN,
    LLM,
    AgentSpec,
    ExperimentSpec,
    ModelSpec,
    ProvenanceRecord,
)
from enginehouse.arena.scripts import make_script
from enginehouse.arena.slots import Slots
from enginehouse.core.errors import ConfigurationError, UnsupportedError
from enginehouse.core.sampler import Capability


@dataclass(frozen=True)
class Lineup:
    """The models that answer in this session, by name."""

    spec: ExperimentSpec
    models: Mapping[str, ActiveModel]

    def match(self, number: int) -> Match:
        """The match of that number: match i of pairing p is i · pairings + p."""
        index, pairing = divmod(number, len(self.spec.pairings))
        names = self.spec.pairings[pairing]
        seated = dict(zip(self.spec.seats, names, strict=True))
        teams = {team.name: team for team in self.spec.teams}
        return Match(
            number=number,
            pairing=" vs ".join(names),
            seed=match_seed(self.spec, index),
            teams=seated,
            agents={
                seat: tuple(map(self._agent, teams[name].agents)) for seat, name in seated.items()
            },
        )

    def _agent(self, spec: AgentSpec) -> Agent:
        if spec.kind in (LLM, HUMAN):
            return Agent(kind=spec.kind, model=self.models[spec.model or HUMAN])
        return Agent(kind=spec.kind, script=make_script(spec.kind))


def line_up(
    spec: ExperimentSpec,
    *,
    models: Mapping[str, Model],
    human: Human | None,
    cassette: Cassette | None,
    journal: ExperimentJournal,
    wake: asyncio.Event,
) -> Lineup:
    """Find and journal who answers; models of one server share its slots, which set `wake`.

    Raises ConfigurationError if one is missing or has other weights than before, and
    UnsupportedError for a model that cannot chat.
    """
    seated = {name for pairing in spec.pairings for name in pairing}
    agents = [agent for team in spec.teams if team.name in seated for agent in team.agents]
    needed = {agent.model for agent in agents}
    answering = [(s, models.get(s.name)) for s in spec.models if s.name in needed]
    if any(agent.kind == HUMAN for agent in agents):
        person = human and HumanSampler(human)
        somebody = Model(sampler=person, provenance=PERSON, slots=1) if person else None
        answering.append((ModelSpec(name=HUMAN), somebody))
    begun = tuple(journal.recordings.sessions)
    sessions = [
        _session(model_spec, model, number=number, cassette=cassette, begun=begun)
        for number, (model_spec, model) in enumerate(answering, start=len(begun))
    ]
    slots: dict[str, Slots] = {}
    active: dict[str, ActiveModel] = {}
    for (model_spec, model), session in zip(answering, sessions, strict=True):
        shared = slots.setdefault(session.provenance.base_url, Slots(wake=wake))
        if model is not None and model.slots is not None:
            shared.bound(model.slots)
        active[model_spec.name] = ActiveModel(
            spec=model_spec,
            model=model,
            session=session.id,
            slots=shared,
            limit=ContextLimit(model.context if model else None),
        )
        journal.write(session)
    return Lineup(spec, active)


def _session(
    spec: ModelSpec,
    model: Model | None,
    *,
    number: int,
    cassette: Cassette | None,
    begun: Sequence[ProvenanceRecord],
) -> ProvenanceRecord:
    """Who answers for a model; without one, who answered in the cassette.

    `begun` are the sessions of the run so far.
    """
    if model is None:
        then = cassette.session(spec.name) if cassette else None
        if then is None:
            raise ConfigurationError(
                f"nobody answers for {spec.name}",
                why="it is in no recording that was given",
                fix="leave --offline out, or give as --cassette a run in which it played",
            )
        return ProvenanceRecord(
            id=number, model=spec.name, provenance=then.provenance, seeded=then.seeded
        )
    if Capability.CHAT not in model.sampler.capabilities.supports:
        raise UnsupportedError(
            f"{spec.name} cannot play",
            why="its engine does not support chat; nothing was asked",
            fix="use an engine and a model with a chat template",
        )
    earlier = [session.provenance for session in begun if session.model == spec.name]
    for part in ("weights", "adapter"):
        known = {getattr(provenance, f"{part}_digest") for provenance in earlier} - {None}
        if known and getattr(model.provenance, f"{part}_digest") not in known:
            raise ConfigurationError(
                f"{spec.name} does not have the {part} that the run began with",
                fix=f"restore the {part} that the run began with, or start a new run",
            )
    return ProvenanceRecord(
        id=number,
        model=spec.name,
        provenance=model.provenance,
        seeded=Capability.SEED in model.sampler.capabilities.supports,
    )


def match_seed(spec: ExperimentSpec, index: int) -> int:
    """The seed of the matches with that index in every pairing, in [0, 2**31).

    The first 31 bits of the SHA-256 of the JSON array [experiment's seed, index].
    """
    digest = hashlib.sha256(msgspec.json.encode((spec.seed, index))).digest()
    return int.from_bytes(digest[:4], "big") >> 1
