"""Journals of experiments, written without playing them: teams choose by a probability."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from enginehouse.arena.records import (
    JOURNAL_FORMAT,
    AgentSpec,
    CallFailure,
    CallKey,
    CallRecord,
    DecisionRecord,
    Deliberation,
    ExperimentSpec,
    HeaderRecord,
    MatchRecord,
    ModelSpec,
    Opinion,
    Poll,
    PrefixCacheRecord,
    ProvenanceRecord,
    TeamSpec,
    TurnRecord,
)
from enginehouse.core.messages import ChatPrompt, Message
from enginehouse.core.sampler import (
    Completion,
    Provenance,
    SampleRequest,
    SampleResponse,
    Timing,
    TokenLogprob,
)
from enginehouse.games.registry import make_game
from enginehouse.store.journal import Journal
from enginehouse.store.runs import Run, RunInfo, RunStatus

SEATS = ("team_a", "team_b")
AT = 1_800_000_000.0


def made_spec(
    cooperation: Mapping[str, float],
    *,
    pairings: Sequence[tuple[str, str]] | None = None,
    matches: int = 20,
    rounds: int = 10,
    agents: int = 1,
) -> ExperimentSpec:
    """Teams named by the keys, of scripts if they have one agent, else of a model each."""
    teams = tuple(cooperation)
    return ExperimentSpec(
        name="made",
        game="red_black",
        settings={"num_rounds": rounds},
        seats=SEATS,
        models=tuple(ModelSpec(name=f"model-{team}") for team in teams) if agents > 1 else (),
        teams=tuple(
            TeamSpec(
                name=team,
                agents=(AgentSpec(kind="llm", model=f"model-{team}"),) * agents
                if agents > 1
                else (AgentSpec(kind="random"),),
            )
            for team in teams
        ),
        pairings=tuple(pairings or [(one, other) for one in teams for other in teams]),
        matches=matches,
        seed=5,
    )


def make_experiment(
    folder: Path,
    spec: ExperimentSpec,
    cooperation: Mapping[str, float],
    *,
    failed: Sequence[int] = (),
    calls: bool = False,
    words: str = "I think {choice} is best.",
) -> Run:
    """A run folder with the journal of a finished experiment.

    `cooperation` is each team's probability of BLACK, per agent. Matches in `failed` ended early.
    `calls` also journals the requests, without the polls'. `words` are what everybody says.
    """
    folder.mkdir(parents=True, exist_ok=True)
    game = make_game(spec.game, spec.settings, seats=spec.seats)
    run = Run(
        folder,
        RunInfo(
            id=folder.name,
            status=RunStatus.COMPLETE,
            created=datetime.fromtimestamp(AT, UTC),
            model="made",
            tasks=(spec.game,),
            versions={},
            kind="experiment",
        ),
    )
    run.update()
    with Journal(run.journal_path, first=HeaderRecord) as journal:
        journal.append(
            HeaderRecord(
                format=JOURNAL_FORMAT,
                run=folder.name,
                game_version=game.info.version,
                measures=game.info.measures,
                spec=spec,
            )
        )
        for number, model in enumerate(spec.models):
            journal.append(
                ProvenanceRecord(
                    id=number, model=model.name, provenance=_provenance(model.name), seeded=True
                )
            )
        for i in range(spec.matches):
            for n, pairing in enumerate(spec.pairings):
                match = i * len(spec.pairings) + n
                made = _Match(spec, game, match=match, pairing=pairing, seed=1000 + i)
                for record in made.play(cooperation, failed=match in failed, words=words):
                    if calls or isinstance(record, MatchRecord):
                        journal.append(record)
        if spec.models:
            journal.append(PrefixCacheRecord(url="http://127.0.0.1:1", queries=1000, hits=900))
    return run


class _Match:
    def __init__(
        self, spec: ExperimentSpec, game: Any, *, match: int, pairing: tuple[str, ...], seed: int
    ) -> None:
        self.spec, self.game, self.match, self.seed = spec, game, match, seed
        self.teams = dict(zip(spec.seats, pairing, strict=True))
        self.sizes = {team.name: len(team.agents) for team in spec.teams}
        self.random = np.random.default_rng((seed, match))
        self.calls: list[CallRecord] = []

    def play(
        self, cooperation: Mapping[str, float], *, failed: bool, words: str
    ) -> list[CallRecord | MatchRecord]:
        """Everything that is journaled, in order."""
        state = self.game.start(self.seed)
        turns: list[TurnRecord] = []
        while self.game.decisions(state) and not (failed and len(turns) == 1):
            decided = {
                seat: self._decide(seat, len(turns), cooperation[team], words)
                for seat, team in self.teams.items()
            }
            state = self.game.apply(state, {seat: d.action for seat, d in decided.items()})
            turns.append(
                TurnRecord(
                    decisions=decided,
                    event=self.game.history(state, self.spec.seats[0])[-1],
                    scores=self.game.scores(state),
                )
            )
        polls = {seat: 3 * len(turns) for seat in self.teams}
        record = MatchRecord(
            match=self.match,
            pairing=" vs ".join(self.teams.values()),
            seed=self.seed,
            teams=self.teams,
            turns=tuple(turns),
            scores=self.game.scores(state),
            measures=self.game.measures(state),
            welfare=self.game.welfare(state),
            started=AT + 30.0 * self.match,
            seconds=60.0,
            calls=len(self.calls),
            invalid=dict.fromkeys(self.teams, 1) if self.calls else {},
            asked=polls if self.calls else {},
            failure=CallFailure(kind="ServerFaultError", message="500 <b>") if failed else None,
        )
        return [*self.calls, record]

    def _decide(self, seat: str, turn: int, cooperation: float, words: str) -> DecisionRecord:
        size = self.sizes[self.teams[seat]]
        votes = ["BLACK" if x < cooperation else "RED" for x in self.random.random(size)]
        if size == 1:
            return DecisionRecord(action=votes[0], source="script")
        said = tuple(
            Opinion(agent=agent, text=words.format(choice=votes[agent])) for agent in range(size)
        )
        for agent in range(size):
            self._call(seat, turn, agent, said[agent].text, kind="opinion", step=agent)
            self._call(seat, turn, agent, votes[agent], kind="vote")
        black = votes.count("BLACK")
        return DecisionRecord(
            action="BLACK" if 2 * black >= size else "RED",
            source="tie" if 2 * black == size else "majority",
            deliberation=Deliberation(
                polls=tuple(
                    Poll(
                        willingness={
                            a: None if a == size - 1 else 3 - a % 4 for a in range(n, size)
                        },
                        speaker=n,
                    )
                    for n in range(size)
                ),
                opinions=said,
                votes=tuple(votes),
            ),
        )

    def _call(self, seat: str, turn: int, agent: int, text: str, **key: Any) -> None:
        number = len(self.calls)
        tokens = tuple(range(number, number + 4))
        self.calls.append(
            CallRecord(
                key=CallKey(match=self.match, turn=turn, seat=seat, agent=agent, **key),
                provenance=[m.name for m in self.spec.models].index(f"model-{self.teams[seat]}"),
                request=SampleRequest(
                    prompt=ChatPrompt((Message("system", "rules"), Message("user", f"turn {turn}")))
                ),
                response=SampleResponse(
                    completions=(
                        Completion(
                            text=text,
                            finish_reason="stop",
                            token_ids=tokens,
                            logprobs=tuple(
                                TokenLogprob(logprob=-0.5, text="x", token_id=t) for t in tokens
                            ),
                        ),
                    ),
                    model=f"model-{self.teams[seat]}",
                    request_id=f"r{number}",
                    prompt_tokens=100,
                    completion_tokens=4,
                    timing=Timing(started=AT, elapsed=0.2),
                    prompt_token_ids=(1, 2, 3),
                ),
                value=text,
                read_by="choice" if key["kind"] == "vote" else "",
            )
        )


def _provenance(model: str) -> Provenance:
    return Provenance(
        engine="vllm",
        engine_version="0.32.0",
        engine_arguments=(),
        environment="made",
        model=model,
        weights_digest="5f59182dbef2" + "0" * 52,
        chat_template_digest=None,
        base_url="http://127.0.0.1:1",
        adapter_digest="ab12" + "0" * 60 if "lora" in model else None,
    )
