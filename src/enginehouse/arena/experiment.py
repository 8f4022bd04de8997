"""Plays an experiment: every match that its journal lacks, as many at once as fill the engines."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from enginehouse.arena.calls import MatchCalls
from enginehouse.arena.deliberation import Agent, TeamTurn
from enginehouse.arena.human import PERSON, Human, HumanSampler
from enginehouse.arena.match import Match, play_match
from enginehouse.arena.models import ActiveModel, ContextLimit, Model
from enginehouse.arena.recordings import Cassette, Recordings, read_recordings
from enginehouse.arena.records import (
    HUMAN,
    JOURNAL_FORMAT,
    LLM,
    RANDOM,
    AgentSpec,
    CallRecord,
    ExperimentSpec,
    HeaderRecord,
    ModelSpec,
    PrefixCacheRecord,
    ProvenanceRecord,
    Record,
    RepairRecord,
)
from enginehouse.arena.scripts import make_script
from enginehouse.arena.slots import Slots
from enginehouse.core.errors import (
    ConfigurationError,
    ConnectionFailedError,
    EnginehouseError,
    ServerGoneError,
    TlsError,
    UnknownNameError,
    UnsupportedError,
    WireError,
)
from enginehouse.core.sampler import Capability, Load
from enginehouse.games.base import Game, Pick
from enginehouse.results.experiment_progress import ExperimentProgress
from enginehouse.store.journal import Journal
from enginehouse.store.runs import Run, RunStatus

OnProgress = Callable[[ExperimentProgress], None]

_TICK: Final = 0.5  # seconds between reports of progress
_BREATH: Final = 0.05  # seconds after which matches without a model let others run


async def play_experiment(
    spec: ExperimentSpec,
    *,
    game: Game,
    models: Mapping[str, Model],
    run: Run,
    human: Human | None = None,
    cassette: Path | None = None,
    progress: OnProgress = lambda _: None,
    retry_failed: bool = False,
) -> None:
    """Play the matches that `run`'s journal lacks, and journal every call and every match.

    `models` has who answers for each of the spec's models, by name; `human` is asked where an agent
    is "human". A new run and a resumed one are the same call: recorded calls answer as long as
    their prompts are the same, and matches that have ended are left alone (failed ones too, unless
    `retry_failed`). A finished run asks nothing and needs no models. `cassette` is the journal of
    another experiment, whose calls answer where the same model would be asked the same; models
    that it answers for need not be given. `progress` is called from the event loop about every
    half second and at the end. Cancellable at any time.

    Raises, leaving the run resumable: ConfigurationError (the spec differs from the one that the
    run began with, or cannot be played), UnsupportedError (before anything is asked),
    RunLockedError, StoreError, and the errors that every further call would end with:
    ServerGoneError, UnauthorizedError, NoCreditError, UnknownModelError. Any other failed call
    fails its match only.
    """
    with run.hold():
        run.update(status=RunStatus.RUNNING, finished=None)
        try:
            check_experiment(spec, game=game)
            with Journal(run.journal_path, first=HeaderRecord) as journal:
                recordings = read_recordings(run.journal_path, keep_failed=retry_failed)
                experiment = _Experiment(
                    spec,
                    game=game,
                    journal=journal,
                    recordings=recordings,
                    cassette=Cassette(read_recordings(cassette, keep=True)) if cassette else None,
                    progress=progress,
                )
                experiment.prepare(run.info.id)
                await experiment.play(models, human=human, retry_failed=retry_failed)
            run.finish(RunStatus.COMPLETE)
        except BaseException as error:
            run.note_end(error)
            raise


def matches_left(spec: ExperimentSpec, *, game: Game, run: Run, retry_failed: bool = False) -> int:
    """How many matches `play_experiment` would play. Raises as it does, but needs no models."""
    check_experiment(spec, game=game)
    with run.hold(), Journal(run.journal_path, first=HeaderRecord) as journal:
        recordings = read_recordings(run.journal_path, keep_failed=retry_failed)
        experiment = _Experiment(spec, game=game, journal=journal, recordings=recordings)
        experiment.prepare(run.info.id)
        return sum(1 for _ in experiment.missing(retry_failed=retry_failed))


def check_experiment(spec: ExperimentSpec, *, game: Game) -> None:
    """Raise ConfigurationError if the experiment cannot be played."""
    info = game.info
    if not info.least_seats <= len(spec.seats) <= info.most_seats:
        raise ConfigurationError(
            f"{info.name} is played by {info.least_seats} to {info.most_seats} teams, not "
            f"{len(spec.seats)}"
        )
    state = game.start(match_seed(spec, 0))
    past = game.past_actions(state)
    for seat, decision in game.decisions(state).items():
        for team in spec.teams:
            if len(team.agents) > 1 and not (info.teams and isinstance(decision, Pick)):
                raise ConfigurationError(
                    f"team {team.name} has {len(team.agents)} agents, and {info.name} is played by "
                    "one for each team",
                    fix="give the team a size of 1",
                )
            agents = tuple(
                Agent(kind=a.kind, script=None if a.kind in (LLM, HUMAN) else make_script(a.kind))
                for a in team.agents
            )
            turn = TeamTurn(
                match=0,
                turn=0,
                seat=seat,
                agents=agents,
                decision=decision,
                past=past,
                system="",
                history=(),
                situation="",
                seed=0,
                spec=spec.deliberation,
            )
            for number, agent in enumerate(agents):
                if agent.script is not None:
                    turn.scripted(number)
        if isinstance(decision, Pick):
            for policy in (spec.deliberation.tie, spec.deliberation.no_vote):
                if policy != RANDOM and policy not in decision.options:
                    raise UnknownNameError("option", policy, (*decision.options, RANDOM))


def match_seed(spec: ExperimentSpec, index: int) -> int:
    """The seed of the matches with that index in every pairing, in [0, 2**31)."""
    digest = hashlib.sha256(msgspec.json.encode((spec.seed, index))).digest()
    return int.from_bytes(digest[:4], "big") >> 1


class _Experiment:
    """One process's work on an experiment."""

    def __init__(
        self,
        spec: ExperimentSpec,
        *,
        game: Game,
        journal: Journal,
        recordings: Recordings,
        cassette: Cassette | None = None,
        progress: OnProgress = lambda _: None,
    ) -> None:
        self._spec = spec
        self._game = game
        self._journal = journal
        self._recordings = recordings
        self._cassette = cassette
        self._progress = progress
        self._teams = {team.name: team for team in spec.teams}
        self._models: dict[str, ActiveModel] = {}
        self._slots: dict[str, Slots] = {}  # by base URL
        self._wake = asyncio.Event()
        self._playing: dict[asyncio.Task[None], Match] = {}
        self._started = self._reported = self._breath = time.monotonic()
        self._already = len(recordings.ended)
        self._calls = self._replayed = 0
        self._prompt_tokens = self._completion_tokens = 0

    def prepare(self, run_id: str) -> None:
        """Write the journal's head if it is missing. Raises ConfigurationError if it differs."""
        header = HeaderRecord(
            format=JOURNAL_FORMAT,
            run=run_id,
            game_version=self._game.info.version,
            measures=self._game.info.measures,
            spec=self._spec,
        )
        if self._recordings.header is None:
            self._write(msgspec.json.decode(msgspec.json.encode(header), type=HeaderRecord))
        if repair := self._journal.repair:
            self._write(RepairRecord(size=repair.size, kept=repair.kept.name))
        begun = self._recordings.header
        assert begun is not None
        encoded = msgspec.json.encode(self._spec)  # JSON has no numbers as keys of objects
        changed = _differences(begun.spec, msgspec.json.decode(encoded, type=ExperimentSpec))
        if begun.game_version != header.game_version:
            changed.append(f"version of {self._game.info.name}")
        if changed:
            raise ConfigurationError(
                f"run {run_id} was begun with another {', '.join(changed)}",
                why="its matches and new ones could not be compared",
                fix="resume it with its original settings, or start a new run",
            )

    def missing(self, *, retry_failed: bool) -> Iterator[int]:
        """The numbers of the matches that are still to be played."""
        ended = self._recordings.ended
        for number in range(self._spec.matches * len(self._spec.pairings)):
            if number not in ended or (retry_failed and ended[number]):
                yield number

    async def play(
        self, models: Mapping[str, Model], *, human: Human | None, retry_failed: bool
    ) -> None:
        """Play what is missing."""
        numbers = list(self.missing(retry_failed=retry_failed))
        if numbers:
            self._activate(models, human)
            before = await _loads(models)
            try:
                await self._play_all(numbers)
            finally:
                for url, load in (await _loads(models)).items():
                    self._note_prefix_cache(url, before.get(url), load)
        self._progress(self._state())

    async def _play_all(self, numbers: list[int]) -> None:
        try:
            for number in numbers:
                match = self._match(number)
                if match.is_scripted:
                    await self._play(match)
                    await self._breathe()
                    continue
                while not self._may_start(match):
                    await self._wait()
                task = asyncio.create_task(self._play(match))
                task.add_done_callback(lambda _: self._wake.set())
                self._playing[task] = match
                await asyncio.sleep(0)  # lets the match ask its first questions
            while self._playing:
                await self._wait()
        except WireError as error:
            raise self._ending(error) from error
        finally:
            for task in self._playing:
                task.cancel()
            await asyncio.gather(*self._playing, return_exceptions=True)

    def _may_start(self, match: Match) -> bool:
        """Whether an engine waits for the match's calls; a person plays one match at a time."""
        agents = [agent for team in match.agents.values() for agent in team]
        if any(agent.kind == HUMAN for agent in agents):
            return not self._playing
        return any(a.model.slots.hungry for a in agents if a.model is not None)

    async def _wait(self) -> None:
        """Wait until something changes. Raises what ended a match's task."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_TICK):
                await self._wake.wait()
        self._wake.clear()
        for task in [task for task in self._playing if task.done()]:
            del self._playing[task]
            task.result()
        self._report()

    async def _breathe(self) -> None:
        now = time.monotonic()
        if now - self._breath > _BREATH:
            self._breath = now
            await asyncio.sleep(0)
            self._report()

    async def _play(self, match: Match) -> None:
        calls = MatchCalls(
            seed=match.seed,
            writer=self,
            recordings=self._recordings,
            cassette=self._cassette,
        )
        record = await play_match(match, game=self._game, spec=self._spec.deliberation, calls=calls)
        self._replayed += calls.figures.calls - calls.answered
        self._write(record)
        self._recordings.forget(match.number)

    def write_call(self, record: CallRecord) -> None:
        """Journal a call, and count it."""
        self._write(record)
        if record.response is not None and not record.replayed:
            self._calls += 1
            self._prompt_tokens += record.response.prompt_tokens
            self._completion_tokens += record.response.completion_tokens

    def _write(self, record: Record) -> None:
        self._recordings.add(record, offset=self._journal.append(record))

    def _match(self, number: int) -> Match:
        index, pairing = divmod(number, len(self._spec.pairings))
        names = self._spec.pairings[pairing]
        seated = dict(zip(self._spec.seats, names, strict=True))
        return Match(
            number=number,
            pairing=" vs ".join(names),
            seed=match_seed(self._spec, index),
            teams=seated,
            agents={
                seat: tuple(map(self._agent, self._teams[name].agents))
                for seat, name in seated.items()
            },
        )

    def _agent(self, spec: AgentSpec) -> Agent:
        if spec.kind in (LLM, HUMAN):
            return Agent(kind=spec.kind, model=self._models[spec.model or HUMAN])
        return Agent(kind=spec.kind, script=make_script(spec.kind))

    def _activate(self, models: Mapping[str, Model], human: Human | None) -> None:
        """Note who answers in this session. Raises ConfigurationError if somebody is missing."""
        seated = {name for pairing in self._spec.pairings for name in pairing}
        agents = [agent for name in sorted(seated) for agent in self._teams[name].agents]
        if any(agent.kind == HUMAN for agent in agents):
            self._activate_one(
                ModelSpec(name=HUMAN),
                None
                if human is None
                else Model(sampler=HumanSampler(human), provenance=PERSON, slots=1),
            )
        needed = {agent.model for agent in agents}
        for spec in self._spec.models:
            if spec.name in needed:
                self._activate_one(spec, models.get(spec.name))

    def _activate_one(self, spec: ModelSpec, model: Model | None) -> None:
        known = {
            s.provenance.weights_digest for s in self._recordings.sessions if s.model == spec.name
        } - {None}
        if model is not None:
            provenance, supports = model.provenance, model.sampler.capabilities.supports
            if Capability.CHAT not in supports:
                raise UnsupportedError(
                    f"{spec.name} cannot play",
                    why="its engine does not support chat; nothing was asked",
                    fix="use an engine and a model with a chat template",
                )
            if known and provenance.weights_digest not in known:
                raise ConfigurationError(
                    f"the weights of {spec.name} are not those that the run began with",
                    fix="restore the weights that the run began with, or start a new run",
                )
        else:
            then = self._cassette.session(spec.name) if self._cassette else None
            if then is None:
                raise ConfigurationError(
                    f"nobody answers for {spec.name}", fix="provide the model, or the person"
                )
            provenance, supports = then.provenance, frozenset()
        slots = self._slots.setdefault(provenance.base_url, Slots(wake=self._wake))
        slots.bound(model.slots if model else 1)
        session = len(self._recordings.sessions)
        self._models[spec.name] = ActiveModel(
            spec=spec,
            model=model,
            session=session,
            slots=slots,
            limit=ContextLimit(model.context if model else None),
        )
        self._write(
            ProvenanceRecord(
                id=session,
                model=spec.name,
                provenance=provenance,
                seeded=Capability.SEED in supports,
            )
        )

    def _note_prefix_cache(self, url: str, before: Load | None, after: Load) -> None:
        if before is None or before.prefix_cache_queries is None:
            return
        if after.prefix_cache_queries is None:
            return
        self._write(
            PrefixCacheRecord(
                url=url,
                queries=after.prefix_cache_queries - before.prefix_cache_queries,
                hits=(after.prefix_cache_hits or 0) - (before.prefix_cache_hits or 0),
            )
        )

    def _ending(self, error: WireError) -> EnginehouseError:
        """The error of an experiment that cannot go on, by that of a call."""
        missing = sum(1 for _ in self.missing(retry_failed=False))
        if isinstance(error, ConnectionFailedError) and not isinstance(error, TlsError):
            return ServerGoneError(
                "the server is gone: a request could not connect, and neither could its retries",
                why=error.message,
                fix="look at the server's log, start it again, and resume: "
                f"{missing} matches are missing, and every answer so far is kept",
            )
        return error

    def _report(self) -> None:
        now = time.monotonic()
        if now - self._reported >= _TICK:
            self._reported = now
            self._progress(self._state())

    def _state(self) -> ExperimentProgress:
        ended = self._recordings.ended
        total = self._spec.matches * len(self._spec.pairings)
        elapsed = time.monotonic() - self._started
        here = len(ended) - self._already
        return ExperimentProgress(
            matches=total,
            finished=sum(1 for failed in ended.values() if not failed),
            failed=sum(ended.values()),
            playing=len(self._playing),
            calls=self._calls,
            replayed=self._replayed,
            in_flight=sum(slots.in_flight for slots in self._slots.values()),
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self._completion_tokens,
            elapsed=elapsed,
            seconds_left=(total - len(ended)) * elapsed / here if here > 0 else None,
        )


async def _loads(models: Mapping[str, Model]) -> dict[str, Load]:
    """The counters of every server that has any, by base URL."""
    loads: dict[str, Load] = {}
    for model in models.values():
        url = model.provenance.base_url
        if model.load is not None and url not in loads:
            with suppress(WireError):
                if (load := await model.load()) is not None:
                    loads[url] = load
    return loads


def _differences(one: msgspec.Struct, other: msgspec.Struct) -> list[str]:
    return [n for n in one.__struct_fields__ if getattr(one, n) != getattr(other, n)]
