"""Models and people without an engine, for tests of the arena."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec

from enginehouse.arena.experiment import play_experiment
from enginehouse.arena.models import Model
from enginehouse.arena.records import (
    LLM,
    AgentSpec,
    CallRecord,
    ExperimentSpec,
    MatchRecord,
    ModelSpec,
    Record,
    TeamSpec,
)
from enginehouse.core.messages import ChatPrompt
from enginehouse.core.sampler import (
    Capabilities,
    Capability,
    Completion,
    Delta,
    Provenance,
    SampleRequest,
    SampleResponse,
    Timing,
)
from enginehouse.core.sampling import SamplingParameters
from enginehouse.games.registry import make_game
from enginehouse.store.journal import read_journal
from enginehouse.store.layout import Layout
from enginehouse.store.runs import Run, create_run

SEATS = ("team_a", "team_b")
Reply = Callable[[SampleRequest], "str | Completion | Exception"]


def provenance(name: str, **changes: Any) -> Provenance:
    """Who answers for a fake model; every name has weights and a server of its own."""
    known = Provenance(
        engine="fake",
        engine_version="1",
        engine_arguments=(),
        environment=None,
        model=name,
        weights_digest=name * 8,
        chat_template_digest=None,
        base_url=f"http://127.0.0.1/{name}",
    )
    return msgspec.structs.replace(known, **changes)


def question_of(request: SampleRequest) -> str:
    """What is asked, at the very end of the prompt."""
    assert isinstance(request.prompt, ChatPrompt)
    return request.prompt.messages[-1].content.rpartition("\n\n")[2]


def vote_for(option: str) -> Reply:
    """A model that always votes for one option, and wishes to speak as much as its number says."""

    def reply(request: SampleRequest) -> str:
        question = question_of(request)
        if "How much do you wish" in question:
            return str(int(question.split("member ")[1][0]) % 4)
        if "your turn to speak" in question:
            return f"I am for {option}."
        if request.parameters.structured is None:
            return f"Well.\nVOTE: {option}"
        if request.parameters.structured.choice is not None:
            return option
        return f'{{"reasoning": "because", "vote": "{option}"}}'

    return reply


class FakeModel:
    """Answers with `reply(request)`; an exception is raised. Takes one step of the loop each."""

    def __init__(
        self,
        reply: Reply,
        *,
        capabilities: frozenset[Capability] = frozenset(Capability),
        seconds: Callable[[], float] = lambda: 0,
    ) -> None:
        self.capabilities = Capabilities(supports=capabilities)
        self.reply = reply
        self.seconds = seconds
        self.requests: list[SampleRequest] = []
        self.in_flight = self.most_in_flight = 0

    async def sample(self, request: SampleRequest) -> SampleResponse:
        """Answer."""
        self.requests.append(request)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await asyncio.sleep(self.seconds())
        finally:
            self.in_flight -= 1
        reply = self.reply(request)
        if isinstance(reply, Exception):
            raise reply
        if isinstance(reply, str):
            reply = Completion(text=reply, finish_reason="stop", token_ids=(1, 2))
        assert isinstance(request.prompt, ChatPrompt)
        size = sum(len(message.content) for message in request.prompt.messages)
        return SampleResponse(
            completions=(reply,),
            model="fake",
            request_id=str(len(self.requests)),
            prompt_tokens=size // 4,
            completion_tokens=2,
            timing=Timing(started=0, elapsed=0),
        )

    def stream(self, request: SampleRequest) -> AsyncIterator[Delta]:
        """Never asked for."""
        raise NotImplementedError

    async def tokenize(self, text: str, *, add_special_tokens: bool = True) -> tuple[int, ...]:
        """Never asked for."""
        raise NotImplementedError


def team(name: str, *kinds: str, size: int = 1, model: str | None = None) -> TeamSpec:
    """A team of `kinds`, or of `size` agents of `model`."""
    agents = (
        tuple(AgentSpec(kind=kind) for kind in kinds)
        or (AgentSpec(kind=LLM, model=model or name),) * size
    )
    return TeamSpec(name=name, agents=agents)


def red_black(*teams: TeamSpec, **changes: Any) -> ExperimentSpec:
    """Three rounds of Red-Black between two teams; a model for every llm agent's name."""
    names = {agent.model for each in teams for agent in each.agents if agent.model}
    parameters = SamplingParameters(temperature=0.7, max_tokens=64)
    spec = ExperimentSpec(
        name="test",
        game="red_black",
        settings={"num_rounds": 3, "multipliers": {3: 2}},
        seats=SEATS,
        models=tuple(ModelSpec(name=name, parameters=parameters) for name in sorted(names)),
        teams=teams,
        pairings=((teams[0].name, teams[1].name),),
        matches=1,
    )
    return msgspec.structs.replace(spec, **changes)


def new_run(folder: Path, name: str = "home") -> Run:
    """An empty run folder."""
    home = folder / name
    layout = Layout(cache=home / "cache", state=home / "state", config=home / "config")
    return create_run(layout, model="m", tasks=["play"], config="", versions={})


async def play(spec: ExperimentSpec, run: Run, **options: Any) -> list[MatchRecord]:
    """Play with fakes by model name, or any of play_experiment's options; the matches by number.

    A FakeModel as an option answers for the model of that name.
    """
    models = {
        name: Model(sampler=fake, provenance=provenance(name))
        for name, fake in options.items()
        if isinstance(fake, FakeModel)
    }
    others = {name: value for name, value in options.items() if name not in models}
    game = make_game(spec.game, spec.settings, seats=spec.seats)
    await play_experiment(spec, game=game, models=models, run=run, **others)
    return matches(run)


def records(run: Run) -> list[Any]:
    """Every record of a run's journal."""
    return [entry.record for entry in read_journal(run.journal_path, Record)]


def matches(run: Run) -> list[MatchRecord]:
    """The last record of every match, by number."""
    ended = {r.match: r for r in records(run) if isinstance(r, MatchRecord)}
    return [ended[number] for number in sorted(ended)]


def calls(run: Run) -> list[CallRecord]:
    """Every recorded call."""
    return [record for record in records(run) if isinstance(record, CallRecord)]
