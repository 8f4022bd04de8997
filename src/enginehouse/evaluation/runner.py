"""Runs an evaluation: every missing sample is asked once, journaled, then scored."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from types import TracebackType
from typing import Self

import msgspec

from enginehouse.core.errors import ConfigurationError, HarnessError
from enginehouse.core.sampler import Capabilities, Capability, Provenance, Sampler
from enginehouse.evaluation.asking import Asker, Unit, requests_of, require_capabilities
from enginehouse.evaluation.counting import CountingSampler
from enginehouse.evaluation.foreign import ForeignTasks
from enginehouse.evaluation.judge import Judge
from enginehouse.evaluation.ledger import (
    ASKED,
    CODES,
    FAILED,
    MISSING,
    UNSCORED,
    Ledger,
    TaskLedger,
    read_ledger,
)
from enginehouse.evaluation.plan import TaskPlan, TaskPlans
from enginehouse.evaluation.records import (
    JOURNAL_FORMAT,
    DatasetRecord,
    EvaluationSpec,
    Failure,
    HarnessEndRecord,
    HeaderRecord,
    JudgeRecord,
    ProvenanceRecord,
    Record,
    RepairRecord,
    SampleRecord,
    TaskSpec,
)
from enginehouse.evaluation.remaining import RemainingTime
from enginehouse.evaluation.schedule import Schedule
from enginehouse.evaluation.scoring import Pending, begin_score, finish_judging, finish_score
from enginehouse.evaluation.scoring_processes import ScoringProcesses
from enginehouse.evaluation.streaks import GONE_AFTER, Streaks
from enginehouse.evaluation.summary import summarise
from enginehouse.results.summary import Progress, Report, TaskProgress
from enginehouse.runtime.workers import run_workers
from enginehouse.store.journal import Journal, read_record
from enginehouse.store.runs import Run, RunStatus
from enginehouse.tasks.base import ScoringCall, is_judged

MOST_IN_FLIGHT = 1024
MOST_UNSCORED = 256  # answers that wait for a program or a judge, before asking waits for them
_ANSWERED = tuple(code for code in CODES.values() if code != FAILED)


class Timings(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds between progress reports, and after which a worker that never waited yields."""

    tick: float = 0.5
    breath: float = 0.05


_TIMINGS = Timings()


class Missing(msgspec.Struct, frozen=True, kw_only=True):
    """What a run lacks: samples that were not asked, and answers that no judge has scored.

    `foreign` are the tasks that their harnesses did not finish.
    """

    samples: int
    judgements: int
    foreign: tuple[str, ...]

    @property
    def asks_model(self) -> bool:
        """Whether the model has to be asked."""
        return bool(self.samples or self.foreign)


def count_missing(
    spec: EvaluationSpec, *, tasks: TaskPlans, run: Run, retry_failed: bool = False
) -> Missing:
    """What `evaluate` would ask the model, and what already a judge.

    Raises as `evaluate` does, but needs no sampler.
    """
    with run.hold(), Journal(run.journal_path, first=HeaderRecord) as journal:
        work = Evaluation(spec, tasks=tasks, journal=journal)
        work.prepare(run.info.id)
        states = (ASKED, UNSCORED) if retry_failed else (ASKED,)
        return Missing(
            samples=work.count(_wanted(retry_failed=retry_failed)),
            judgements=sum(
                work.ledger.tasks[name].counts[state]
                for name, plan in work.plans.items()
                if is_judged(plan.task)
                for state in states
            ),
            foreign=tuple(task.name for task in work.unfinished(retry_failed=retry_failed)),
        )


def _wanted(*, retry_failed: bool) -> tuple[int, ...]:
    return (MISSING, FAILED) if retry_failed else (MISSING,)


async def evaluate(  # noqa: PLR0913 (the optional ones are independent of one another)
    spec: EvaluationSpec,
    *,
    tasks: TaskPlans,
    sampler: Sampler | None,
    provenance: Provenance | None,
    run: Run,
    judge: Judge | None = None,
    foreign: ForeignTasks | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
    retry_failed: bool = False,
    timings: Timings = _TIMINGS,
) -> Report:
    """Ask what `run`'s journal lacks, score it, and return the report (also in report.json).

    `tasks` is what `plan_tasks` made of the spec. A new run and a resumed one are the same call; a
    finished one asks nothing and needs no sampler (None). Failed samples count as done unless
    `retry_failed`, and so do answers that a judge left unscored. A `judge` is needed if answers of
    a task that has one are asked, or wait for it. `foreign` runs the tasks of harnesses, after the
    others; if one fails, those after it are run all the same. `progress` is called from the event
    loop every half second and at the end. Cancellable at any time: samples in flight are dropped
    and asked again on resume.

    Raises, leaving the run resumable: ConfigurationError (the spec or the data differ from those
    the run began with), RunLockedError, UnsupportedError (before anything is asked),
    ServerGoneError, UnauthorizedError, ForbiddenError or NoCreditError (every request is refused
    because of the key), TaskError (a task cannot make a question), HarnessError (that of the first
    task that its harness did not finish), StoreError (such as a full disk). Failed and unscored
    samples do not raise: see `require_headlines`.
    """
    with run.in_progress():
        with Journal(run.journal_path, first=HeaderRecord) as journal:
            async with Evaluation(
                spec,
                tasks=tasks,
                journal=journal,
                judge=judge,
                progress=progress,
                timings=timings,
            ) as work:
                work.prepare(run.info.id)
                if retry_failed:
                    work.discard_unjudged()
                await work.score_waiting()
                if sampler is not None and provenance is not None:
                    unfinished = work.expect_foreign(retry_failed=retry_failed)
                    await work.ask_missing(
                        sampler, provenance, wanted=_wanted(retry_failed=retry_failed)
                    )
                    if unfinished:
                        assert foreign is not None
                        await work.run_foreign(foreign, unfinished, provenance)
            del work  # its state would double the memory that the summary takes
        report = summarise(run)
        run.write_report(msgspec.json.format(msgspec.json.encode(report)))
        run.finish(RunStatus.COMPLETE)
    return report


class Evaluation:
    """One process's work on a run."""

    def __init__(
        self,
        spec: EvaluationSpec,
        *,
        tasks: TaskPlans,
        journal: Journal,
        judge: Judge | None = None,
        progress: Callable[[Progress], None] = lambda _: None,
        timings: Timings = _TIMINGS,
    ) -> None:
        self.spec = spec
        self._judge = judge
        self._judge_id: int | None = None  # once it is in the journal
        self.plans = {plan.name: plan for plan in tasks}
        self.journal = journal
        self.ledger: Ledger = read_ledger(journal.path)
        self._progress = progress
        self._timings = timings
        self._started = self._breath = time.monotonic()
        self._remaining: RemainingTime | None = None
        self._counted: CountingSampler | None = None
        self._processes = ScoringProcesses()
        self._scoring: set[asyncio.Task[None]] = set()  # answers that a program is scoring
        self._session: int | None = None  # this process's ProvenanceRecord
        self._foreign: dict[str, TaskProgress] = {}  # tasks that harnesses have begun
        self._harnesses: ForeignTasks | None = None  # that ran or run them

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for task in self._scoring:
            task.cancel()
        await asyncio.gather(*self._scoring, return_exceptions=True)
        await self._processes.close()

    def prepare(self, run_id: str) -> None:
        """Write the journal's head if it is missing. Raises ConfigurationError if it differs."""
        if self.ledger.header is None:
            self.write(
                HeaderRecord(
                    format=JOURNAL_FORMAT, run=run_id, created=datetime.now(UTC), spec=self.spec
                )
            )
        self.require_same_spec(run_id)
        for plan in self.plans.values():
            if (known := self.ledger.tasks.get(plan.name)) is None:
                self.write(plan.record)
            elif changed := _differences(known.record, plan.record):
                raise ConfigurationError(
                    f"the data or version of task {plan.name} changed since run {run_id} began",
                    why=f"another {', '.join(changed)}",
                    fix="restore the original data, or start a new run; if only the scoring "
                    f"changed, `enginehouse rescore {run_id}` scores its answers again",
                )

    def require_same_spec(self, run_id: str) -> None:
        """Note a repaired end. Raises ConfigurationError if the run began with another spec."""
        if repair := self.journal.repair:
            self.write(RepairRecord(at=datetime.now(UTC), size=repair.size, kept=repair.kept.name))
        assert self.ledger.header is not None
        known = self.ledger.header.spec.asking_alike()
        if changed := _differences(known, self.spec.asking_alike()):
            raise ConfigurationError(
                f"run {run_id} was begun with another {', '.join(changed)}",
                why="its answers and new ones could not be combined",
                fix="resume it with its original settings, or start a new run",
            )

    async def score_waiting(self) -> None:
        """Score the answers without a score, after a kill or when a new scoring begins."""
        waiting = sorted(self.ledger.waiting(), key=lambda pair: pair[1])
        self._started = self._breath = time.monotonic()
        for _, offset in waiting:
            self._score(read_record(self.journal.path, Record, offset=offset))
            await self._breathe()
        if waiting:
            await self._finish_scoring()

    def _score(self, sample: SampleRecord) -> None:
        begun = begin_score(self.plans[sample.task], sample)
        if isinstance(begun, Pending):
            self._scoring.add(asyncio.create_task(self._finish(begun)))
        else:
            self.write(begun)

    async def _finish(self, pending: Pending) -> None:
        if isinstance(pending.call, ScoringCall):
            self.write(await finish_score(pending, self._processes))
            return
        plan = self.plans[pending.sample.task]
        if self._judge is None:
            raise ConfigurationError(
                f"the answers of task {plan.name} are scored by a judge, and none was given",
                fix="name one in the configuration, below `judge`",
            )
        if self._judge_id is None:
            self._judge_id = len(self.ledger.judges)
            self.write(
                JudgeRecord(
                    id=self._judge_id,
                    started=datetime.now(UTC),
                    provenance=self._judge.provenance,
                )
            )
        self.write(
            await finish_judging(
                pending, self._judge, plan=plan, judge_id=self._judge_id, spec=self.spec
            )
        )

    def discard_unjudged(self) -> None:
        """Have the answers judged again that a judge left unscored."""
        for name, plan in self.plans.items():
            if is_judged(plan.task):
                self.ledger.tasks[name].discard(UNSCORED)

    async def _breathe(self) -> None:
        """Yield if others have waited for long, and wait while many answers are being scored."""
        if (now := time.monotonic()) - self._breath > self._timings.breath:
            self._breath = now
            await asyncio.sleep(0)
        while len(self._scoring) >= MOST_UNSCORED:
            await asyncio.wait(self._scoring, return_when=asyncio.FIRST_COMPLETED)
            self._forget_scored()

    def _forget_scored(self) -> None:
        """Raises the error that kept a score from being written, if any."""
        for task in [task for task in self._scoring if task.done()]:
            self._scoring.discard(task)
            task.result()

    def count(self, states: tuple[int, ...]) -> int:
        """How many samples are in one of the states."""
        return sum(t.counts[state] for t in self.ledger.native.values() for state in states)

    async def ask_missing(
        self, sampler: Sampler, provenance: Provenance, *, wanted: tuple[int, ...]
    ) -> None:
        """Ask every sample in a wanted state, a bounded number at a time."""
        if missing := self.count(wanted):
            for plan in self.plans.values():
                require_capabilities(plan, sampler.capabilities, spec=self.spec)
            self._counted = CountingSampler(sampler)
            asker = Asker(
                self.spec,
                self._counted,
                provenance=self._begin_session(provenance, sampler.capabilities),
                template=provenance.chat_template_digest,
            )
            count = min(self.spec.most_in_flight or MOST_IN_FLIGHT, missing)
            schedule = self._schedule(wanted)
            streaks = Streaks(self.ledger, limit=count + GONE_AFTER)
            self._started = self._breath = time.monotonic()
            requests_each = {p.name: requests_of(p) for p in self.plans.values()}
            self._remaining = remaining = RemainingTime(
                sum(
                    requests * sum(self.ledger.tasks[name].counts[state] for state in wanted)
                    for name, requests in requests_each.items()
                )
            )

            async def ask(unit: Unit) -> None:
                requests = requests_each[unit.plan.name]
                remaining.begin(requests)
                try:
                    sample = await asker.ask(unit)
                finally:
                    schedule.finish(unit)
                for record in streaks.add(sample, unit):
                    self.write(record)
                if sample.failure is None:
                    self._score(sample)
                remaining.finish(requests)
                await self._breathe()

            await run_workers(
                ask,
                schedule,
                count=count,
                tick=self._report,
                interval=self._timings.tick,
            )
            await self._finish_scoring()
            for record in await streaks.end(asker, next(self._schedule(_ANSWERED), None)):
                self.write(record)
        self._progress(self._state())

    def unfinished(self, *, retry_failed: bool) -> list[TaskSpec]:
        """The tasks that their harnesses have to run: `retry_failed`, also those with failures."""
        return [
            task
            for task in self.spec.foreign
            if not self.ledger.is_whole(task.name, retry_failed=retry_failed)
        ]

    def expect_foreign(self, *, retry_failed: bool) -> list[TaskSpec]:
        """The `unfinished` tasks, which from now on are in the progress."""
        tasks = self.unfinished(retry_failed=retry_failed)
        for task in tasks:
            self._note_foreign(task.name, 0, None)
        return tasks

    async def run_foreign(
        self, foreign: ForeignTasks, tasks: Sequence[TaskSpec], provenance: Provenance
    ) -> None:
        """Have the tasks run, one after the other, and journal each that is done.

        A task that a group has asked as a part of it is not run again.
        """
        session = self._begin_session(provenance, foreign.capabilities)
        self._harnesses = foreign
        first: HarnessError | None = None
        if self._counted is None:  # no native task was asked before
            self._started = time.monotonic()
        done: set[str] = set()

        async def run(task: TaskSpec) -> None:
            nonlocal first
            progress = partial(self._note_foreign, task.name)
            try:
                if task.name not in done:
                    for record in await foreign.run(task, session=session, progress=progress):
                        self.write(record)
                        if isinstance(record, DatasetRecord):
                            done.add(record.task)
                            self._foreign.pop(record.task, None)
                        await self._breathe()
            except HarnessError as error:
                first = first or error
                failure = Failure.of(error)
                self.write(HarnessEndRecord(task=task.name, at=datetime.now(UTC), failure=failure))
            self._foreign.pop(task.name, None)

        ordered = await foreign.in_order(tasks)
        await run_workers(run, ordered, count=1, tick=self._report, interval=self._timings.tick)
        if first is not None:
            raise first

    def _note_foreign(self, task: str, done: int, total: int | None) -> None:
        self._foreign[task] = TaskProgress(task=task, done=done, total=total, outcomes={})

    def _begin_session(self, provenance: Provenance, capabilities: Capabilities) -> int:
        """The id of this process's ProvenanceRecord, which is written once."""
        if self._session is None:
            self._require_same_weights(provenance)
            self._session = len(self.ledger.sessions)
            self.write(
                ProvenanceRecord(
                    id=self._session,
                    started=datetime.now(UTC),
                    provenance=provenance,
                    seeded=Capability.SEED in capabilities.supports,
                )
            )
        return self._session

    def _require_same_weights(self, provenance: Provenance) -> None:
        known = {
            session.record.provenance.weights_digest
            for session in self.ledger.sessions.values()
            if session.answered
        } - {None}
        digest = provenance.weights_digest
        if known and known != {digest}:
            now = digest[:12] if digest else "not known"
            raise ConfigurationError(
                f"the weights of {provenance.model} are not those that the run began with",
                why=f"digest {', '.join(sorted(str(k)[:12] for k in known))} then, {now} now",
                fix="restore the checkpoint that the run began with, or start a new run",
            )

    def _schedule(self, wanted: tuple[int, ...]) -> Schedule:
        bounded = {task.name: task.concurrency for task in self.spec.tasks if task.concurrency}
        return Schedule(
            {name: self._units(wanted, plan) for name, plan in self.plans.items()}, bounds=bounded
        )

    def _units(self, wanted: tuple[int, ...], plan: TaskPlan) -> Iterator[Unit]:
        states = self.ledger.tasks[plan.name].states
        samples = plan.record.samples
        for index in range(len(states)):
            if states[index] in wanted:
                yield Unit(plan, *divmod(index, samples))

    async def _finish_scoring(self) -> None:
        """Report progress until everything is scored."""
        while self._scoring:
            await asyncio.wait(
                self._scoring, timeout=self._timings.tick, return_when=asyncio.FIRST_EXCEPTION
            )
            self._report()

    def _report(self) -> None:
        """Report progress. Raises the error that kept a score from being written, if any."""
        self._forget_scored()
        self._progress(self._state())

    def write(self, record: Record) -> None:
        """Append a record to the journal and the ledger. Raises StoreError."""
        self.ledger.add(record, offset=self.journal.append(record))

    def _state(self) -> Progress:
        ledger = self.ledger
        tasks = [
            TaskProgress(
                task=name,
                done=sum(task.counts[ASKED + 1 :]),
                total=len(task.states),
                outcomes=task.outcomes(),
            )
            for name, task in ledger.tasks.items()
            if not self._is_foreign(name, task)
        ]
        tasks += self._foreign.values()
        elapsed = time.monotonic() - self._started
        askers = [self._counted, self._harnesses and self._harnesses.traffic]
        tokens = sum(asker.generated_tokens for asker in askers if asker)
        requests = sum(asker.requests for asker in askers if asker)
        return Progress(
            tasks=tuple(tasks),
            requests=requests,
            elapsed=elapsed,
            generated_tokens=tokens,
            tokens_per_second=tokens / elapsed if tokens and elapsed else None,
            seconds_left=self._seconds_left(requests, elapsed=elapsed),
        )

    def _is_foreign(self, name: str, task: TaskLedger) -> bool:
        """Whether a harness's progress stands for the task: its own, or that of its group."""
        work = task.record.harness
        return name in self._foreign or (work is not None and work.part_of in self._foreign)

    def _seconds_left(self, requests: int, *, elapsed: float) -> float | None:
        """An estimate; None before there is one, and while harnesses have tasks to run."""
        if self._foreign:
            return None
        if self._remaining is not None:
            return self._remaining.seconds(answered=requests, elapsed=elapsed)
        return None if self.count((MISSING, ASKED)) else 0.0  # nothing is asked, at most scored


def _differences(one: msgspec.Struct, other: msgspec.Struct) -> list[str]:
    return [n for n in one.__struct_fields__ if getattr(one, n) != getattr(other, n)]
