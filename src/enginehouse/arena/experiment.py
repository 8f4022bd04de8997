"""Plays an experiment: every match that its journal lacks, as many at once as fill the engines."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from operator import itemgetter
from pathlib import Path
from typing import Final

from enginehouse.arena.calls import MatchCalls
from enginehouse.arena.checks import check_experiment
from enginehouse.arena.human import Human
from enginehouse.arena.journal import ExperimentJournal
from enginehouse.arena.lineup import Lineup, line_up
from enginehouse.arena.match import Match, play_match
from enginehouse.arena.models import Model
from enginehouse.arena.recordings import Cassette, read_recordings
from enginehouse.arena.records import (
    HUMAN,
    ExperimentSpec,
    HeaderRecord,
    PrefixCacheRecord,
)
from enginehouse.core.errors import ConnectionFailedError, ServerGoneError, TlsError, WireError
from enginehouse.core.sampler import Load
from enginehouse.games.base import Game
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
    ServerGoneError, TlsError, UnauthorizedError, NoCreditError, UnknownModelError. Any other failed
    call fails its match only.
    """
    with run.in_progress():
        check_experiment(spec, game=game)
        tape = Cassette(read_recordings(cassette, keep=True)) if cassette else None
        with Journal(run.journal_path, first=HeaderRecord) as file:
            journal = ExperimentJournal(
                spec,
                game=game,
                run=run.info.id,
                journal=file,
                recordings=read_recordings(run.journal_path, keep_failed=retry_failed),
            )
            schedule = _Schedule(game=game, journal=journal, cassette=tape, progress=progress)
            if numbers := list(journal.missing(retry_failed=retry_failed)):
                lineup = line_up(
                    spec,
                    models=models,
                    human=human,
                    cassette=tape,
                    journal=journal,
                    wake=schedule.wake,
                )
                before = await _read_loads(models)
                try:
                    await schedule.play(lineup, numbers)
                finally:
                    _note_prefix_caches(journal, before, await _read_loads(models))
            schedule.report()
        run.finish(RunStatus.COMPLETE)


def matches_left(spec: ExperimentSpec, *, game: Game, run: Run, retry_failed: bool = False) -> int:
    """How many matches `play_experiment` would play. Raises as it does, but needs no models."""
    check_experiment(spec, game=game)
    with run.hold(), Journal(run.journal_path, first=HeaderRecord) as file:
        journal = ExperimentJournal(
            spec,
            game=game,
            run=run.info.id,
            journal=file,
            recordings=read_recordings(run.journal_path),
        )
        return sum(1 for _ in journal.missing(retry_failed=retry_failed))


class _Schedule:
    """Starts matches while engines wait for calls, and reports progress. `wake` ends its waits."""

    def __init__(
        self,
        *,
        game: Game,
        journal: ExperimentJournal,
        cassette: Cassette | None,
        progress: OnProgress,
    ) -> None:
        self.wake = asyncio.Event()
        self._game = game
        self._journal = journal
        self._cassette = cassette
        self._progress = progress
        self._lineup: Lineup | None = None
        self._playing: dict[asyncio.Task[None], Match] = {}
        self._started = self._reported = self._breath = time.monotonic()
        self._ended_before = len(journal.recordings.ended)
        self._replayed = 0

    async def play(self, lineup: Lineup, numbers: Sequence[int]) -> None:
        """Play the matches with these numbers. Raises as `play_experiment` does."""
        self._lineup = lineup
        pairings = len(lineup.spec.pairings)
        queues = [deque(n for n in numbers if n % pairings == p) for p in range(pairings)]
        following = asyncio.create_task(_follow_queues(lineup))
        try:
            while queues := [queue for queue in queues if queue]:
                # a pairing whose server is busy does not hold up the others
                for queue in sorted(queues, key=itemgetter(0)):
                    match = lineup.match(queue[0])
                    if self._may_start(match):
                        queue.popleft()
                        await self._start(match)
                        break
                else:
                    await self._wait()
            while self._playing:
                await self._wait()
        except ConnectionFailedError as error:
            if isinstance(error, TlsError):
                raise
            raise ServerGoneError(
                "the server is gone: a request could not connect, and neither could its retries",
                why=error.message,
                fix="look at the server's log, start it again, and resume: "
                f"{self._journal.total - len(self._journal.recordings.ended)} matches are missing, "
                "and every answer so far is kept",
            ) from error
        finally:
            for task in (following, *self._playing):
                task.cancel()
            await asyncio.gather(following, *self._playing, return_exceptions=True)

    def _may_start(self, match: Match) -> bool:
        """Whether all its engines wait for more calls; a person plays one match at a time."""
        agents = [agent for team in match.agents.values() for agent in team]
        if any(agent.kind == HUMAN for agent in agents):
            return not self._playing
        return all(a.model.slots.hungry for a in agents if a.model is not None)

    async def _start(self, match: Match) -> None:
        """Play a match: at once if it makes no calls, otherwise in a task."""
        if match.is_scripted:
            await self._play(match)
            await self._breathe()
            return
        task = asyncio.create_task(self._play(match))
        task.add_done_callback(lambda _: self.wake.set())
        self._playing[task] = match
        await asyncio.sleep(0)  # lets the match ask its first questions

    async def _wait(self) -> None:
        """Wait until something changes. Raises what ended a match's task."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_TICK):
                await self.wake.wait()
        self.wake.clear()
        for task in [task for task in self._playing if task.done()]:
            del self._playing[task]
            task.result()
        if time.monotonic() - self._reported >= _TICK:
            self.report()

    async def _breathe(self) -> None:
        now = time.monotonic()
        if now - self._breath > _BREATH:
            self._breath = now
            await asyncio.sleep(0)
        if now - self._reported >= _TICK:
            self.report()

    async def _play(self, match: Match) -> None:
        assert self._lineup is not None
        calls = MatchCalls(
            seed=match.seed,
            writer=self._journal,
            recordings=self._journal.recordings,
            cassette=self._cassette,
        )
        deliberation = self._lineup.spec.deliberation
        record = await play_match(match, game=self._game, spec=deliberation, calls=calls)
        self._replayed += calls.figures.calls - calls.answered
        self._journal.write(record)
        self._journal.recordings.forget(match.number)

    def report(self) -> None:
        """Tell how far the experiment is."""
        self._reported = time.monotonic()
        journal, elapsed = self._journal, time.monotonic() - self._started
        ended = len(journal.recordings.ended)
        here = ended - self._ended_before
        models = self._lineup.models.values() if self._lineup else ()
        slots = {id(model.slots): model.slots for model in models}
        self._progress(
            ExperimentProgress(
                matches=journal.total,
                finished=journal.finished,
                failed=journal.failed,
                playing=len(self._playing),
                calls=journal.calls,
                replayed=self._replayed,
                in_flight=sum(each.in_flight for each in slots.values()),
                prompt_tokens=journal.prompt_tokens,
                completion_tokens=journal.completion_tokens,
                elapsed=elapsed,
                seconds_left=(journal.total - ended) * elapsed / here if here > 0 else None,
            )
        )


async def _follow_queues(lineup: Lineup) -> None:
    """Let servers whose capacity is not known have as many calls as they take, until cancelled."""
    followed = {id(m.slots): m for m in lineup.models.values() if m.model and m.model.load}
    while True:
        await asyncio.sleep(_TICK)
        for active in followed.values():
            slots = active.slots
            if active.model and active.model.load and slots.in_flight >= slots.count:
                with suppress(WireError):
                    if (load := await active.model.load()) is not None:
                        slots.follow(load)


async def _read_loads(models: Mapping[str, Model]) -> dict[str, Load]:
    """The counters of every server that has any, by base URL."""
    loads: dict[str, Load] = {}
    for model in models.values():
        url = model.provenance.base_url
        if model.load is not None and url not in loads:
            with suppress(WireError):
                if (load := await model.load()) is not None:
                    loads[url] = load
    return loads


def _note_prefix_caches(
    journal: ExperimentJournal, before: Mapping[str, Load], after: Mapping[str, Load]
) -> None:
    for url in before.keys() & after.keys():
        first, last = before[url], after[url]
        if first.prefix_cache_queries is None or last.prefix_cache_queries is None:
            continue
        if last.prefix_cache_queries < first.prefix_cache_queries:
            continue  # the server was restarted, and counts from 0 again
        journal.write(
            PrefixCacheRecord(
                url=url,
                queries=last.prefix_cache_queries - first.prefix_cache_queries,
                hits=(last.prefix_cache_hits or 0) - (first.prefix_cache_hits or 0),
            )
        )
