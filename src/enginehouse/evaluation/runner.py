"""Runs an evaluation: every missing sample is asked once, journaled, then scored."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from types import TracebackType
from typing import Self

import msgspec

from enginehouse.core.errors import (
    BadRequestError,
    ConfigurationError,
    ConnectionFailedError,
    EnginehouseError,
    ForbiddenError,
    NoCreditError,
    OpenFilesError,
    ServerError,
    ServerGoneError,
    TlsError,
    UnauthorizedError,
    WireError,
)
from enginehouse.core.sampler import Provenance, Sampler
from enginehouse.evaluation.asking import Asker, Unit, check_capabilities, requests_of
from enginehouse.evaluation.counting import CountingSampler
from enginehouse.evaluation.ledger import ASKED, CODES, FAILED, MISSING, Ledger, read_ledger
from enginehouse.evaluation.plan import TaskData, TaskPlan, plan_tasks
from enginehouse.evaluation.records import (
    JOURNAL_FORMAT,
    EvaluationSpec,
    HeaderRecord,
    ProvenanceRecord,
    Record,
    RepairRecord,
    SampleRecord,
)
from enginehouse.evaluation.remaining import RemainingTime
from enginehouse.evaluation.rescoring import demand_same_question, demand_same_size
from enginehouse.evaluation.scoring import Pending, begin_score, finish_score
from enginehouse.evaluation.scoring_processes import ScoringProcesses
from enginehouse.evaluation.summary import summarise
from enginehouse.results.rescoring import Rescoring, TaskRescoring
from enginehouse.results.summary import Progress, Report, TaskProgress
from enginehouse.runtime.workers import run_workers
from enginehouse.store.journal import Journal, read_journal, read_record
from enginehouse.store.runs import Run, RunStatus
from enginehouse.tasks.base import Outcome

MOST_IN_FLIGHT = 1024
GONE_AFTER = 10  # connection failures in a row, beyond those that were in flight together
MOST_JUDGED = 256  # answers that wait for a scoring program, before asking waits for them
_UNCONNECTED = {ConnectionFailedError.__name__, TlsError.__name__}
# How many refusals of the key in a row end a run in which nothing was answered yet. A 403 may also
# be a hosted filter's word on one prompt, which comes sooner than the answers to others.
_REFUSED_AFTER: Mapping[str, tuple[type[WireError], int]] = {
    UnauthorizedError.__name__: (UnauthorizedError, 10),
    NoCreditError.__name__: (NoCreditError, 10),
    ForbiddenError.__name__: (ForbiddenError, 50),
}
_ANSWERED = tuple(code for code in CODES.values() if code != FAILED)
_TICK = 0.5  # seconds between progress reports
_BREATH = 0.05  # seconds after which a worker that never waited lets others run


def count_missing(
    spec: EvaluationSpec, *, tasks: TaskData, run: Run, retry_failed: bool = False
) -> int:
    """How many samples `evaluate` would ask.

    Raises as `evaluate` does, before there has to be anybody to ask.
    """
    with run.hold(), Journal(run.journal_path, first=HeaderRecord) as journal:
        work = _Evaluation(spec, plan_tasks(spec, tasks), journal, lambda _: None)
        work.prepare(run.info.id)
        return work.count(_wanted(retry_failed=retry_failed))


def _wanted(*, retry_failed: bool) -> tuple[int, ...]:
    return (MISSING, FAILED) if retry_failed else (MISSING,)


async def evaluate(
    spec: EvaluationSpec,
    *,
    tasks: TaskData,
    sampler: Sampler | None,
    provenance: Provenance | None,
    run: Run,
    progress: Callable[[Progress], None] = lambda _: None,
    retry_failed: bool = False,
) -> Report:
    """Ask what `run`'s journal lacks, score it, and return the report (also in report.json).

    `tasks` maps every task's name in the spec to the task and its loaded data. A new run and a
    resumed one are the same call; a finished one asks nothing, and needs nobody to ask (None).
    Failed samples count as done unless `retry_failed`. `progress` is called from the event loop
    every half second and at the end. Cancellable at any moment: what was in flight is dropped and
    asked on resume.

    Raises, leaving the run resumable: ConfigurationError (the spec or the data is not the one the
    run began with), RunLockedError, UnsupportedError (before anything is asked), ServerGoneError,
    UnauthorizedError, ForbiddenError or NoCreditError (the key is refused, whatever is asked),
    TaskError (a task cannot say what to ask), StoreError (disk full …). Failed and unscored
    samples do not raise: see `require_headlines`.
    """
    with run.hold():
        run.update(status=RunStatus.RUNNING, finished=None)
        try:
            with Journal(run.journal_path, first=HeaderRecord) as journal:
                async with _Evaluation(spec, plan_tasks(spec, tasks), journal, progress) as work:
                    work.prepare(run.info.id)
                    await work.score_waiting()
                    if sampler is not None and provenance is not None:
                        await work.ask_missing(
                            sampler, provenance, wanted=_wanted(retry_failed=retry_failed)
                        )
                del work  # its state would double the memory of summing up
            report = summarise(run)
            run.write_report(msgspec.json.format(msgspec.json.encode(report)))
            run.finish(RunStatus.COMPLETE)
        except BaseException as error:
            note_end(run, error)
            raise
    return report


async def rescore(
    spec: EvaluationSpec,
    *,
    tasks: TaskData,
    run: Run,
    progress: Callable[[Progress], None] = lambda _: None,
) -> Rescoring:
    """Score every answer of `run`'s journal again, by the tasks as they are now. Asks nothing.

    The scores before stay in the journal and no longer count. Stopped in the middle, the run
    lacks scores, and `evaluate` or another `rescore` completes it. `progress` as in `evaluate`.

    Raises ConfigurationError if a task now asks something else than what was answered (only
    scoring may differ), RunLockedError and StoreError.
    """
    with run.hold():
        with Journal(run.journal_path, first=HeaderRecord) as journal:
            before = summarise(run)
            async with _Evaluation(spec, plan_tasks(spec, tasks), journal, progress) as work:
                states = work.begin_scoring(run.info.id)
                run.report_path.unlink(missing_ok=True)  # until all is scored, it would be false
                await work.score_waiting()
                changes = work.changes(states)
        report = summarise(run)
        if report.complete:
            run.write_report(msgspec.json.format(msgspec.json.encode(report)))
            if run.info.status is not RunStatus.COMPLETE:
                run.finish(RunStatus.COMPLETE)
    return Rescoring(
        report=report,
        tasks=tuple(
            TaskRescoring(
                task=now.task,
                version_before=then.version,
                version=now.version,
                answers=sum(now.outcomes.values()) - now.outcomes[Outcome.FAILED],
                changes=changes[now.task],
                headline_before=then.headline,
                headline=now.headline,
            )
            for then, now in zip(before.tasks, report.tasks, strict=True)
        ),
    )


def note_end(run: Run, error: BaseException) -> None:
    """Note how a run ended: interrupted if resuming it may succeed as it is, else failed.

    A run whose end is noted already keeps that.
    """
    if run.info.status is not RunStatus.RUNNING:
        return
    outside = (ServerError, BadRequestError, OpenFilesError)  # the run itself is all right
    stopped = isinstance(error, (*outside, asyncio.CancelledError, KeyboardInterrupt))
    try:
        run.finish(RunStatus.INTERRUPTED if stopped else RunStatus.FAILED)
    except EnginehouseError as second:  # a full disk must not hide the first error
        error.add_note(str(second))


class _Evaluation:
    """One process's work on a run."""

    def __init__(
        self,
        spec: EvaluationSpec,
        plans: Sequence[TaskPlan],
        journal: Journal,
        progress: Callable[[Progress], None],
    ) -> None:
        self._spec = spec
        self._plans = {plan.name: plan for plan in plans}
        self._journal = journal
        self._ledger: Ledger = read_ledger(journal.path)
        self._progress = progress
        self._held: list[SampleRecord] = []  # connection failures since the last answer
        self._refused: list[SampleRecord] = []  # refusals of the key since the last answer
        self._any_answer = False
        self._answered: Unit | None = None  # the last that anybody answered
        self._limit = GONE_AFTER
        self._started = time.monotonic()
        self._breath = self._started
        self._session = -1
        self._remaining: RemainingTime | None = None
        self._requests_each: dict[str, int] = {}  # requests of one sample, by task
        self._counted: CountingSampler | None = None
        self._processes = ScoringProcesses()
        self._scoring: set[asyncio.Task[None]] = set()  # answers that a program is judging

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
        """Write what the journal's head lacks. Raises ConfigurationError if it says otherwise."""
        if (header := self._ledger.header) is None:
            header = HeaderRecord(
                format=JOURNAL_FORMAT, run=run_id, created=datetime.now(UTC), spec=self._spec
            )
            self._write(header)
        self._note_repair()
        self._demand_same_spec(header.spec, run_id)
        for plan in self._plans.values():
            if (known := self._ledger.tasks.get(plan.name)) is None:
                self._write(plan.record)
            elif changed := _differences(known.record, plan.record):
                raise ConfigurationError(
                    f"the data or version of task {plan.name} changed since run {run_id} began",
                    why=f"another {', '.join(changed)}",
                    fix="restore what it was begun with, or start a new run; if only the scoring "
                    f"changed, `enginehouse rescore {run_id}` scores its answers again",
                )

    def _note_repair(self) -> None:
        """Say in the journal that its end was broken."""
        if repair := self._journal.repair:
            self._write(RepairRecord(at=datetime.now(UTC), size=repair.size, kept=repair.kept.name))

    def _demand_same_spec(self, known: EvaluationSpec, run_id: str) -> None:
        asked = msgspec.structs.replace(self._spec, concurrency=None)
        if changed := _differences(msgspec.structs.replace(known, concurrency=None), asked):
            raise ConfigurationError(
                f"run {run_id} was begun with another {', '.join(changed)}",
                why="its answers and new ones could not be added up",
                fix="resume it as it was begun, or start a new run",
            )

    def begin_scoring(self, run_id: str) -> dict[str, bytes]:
        """Void every score, if the tasks still ask what was answered; the states until now.

        Raises ConfigurationError if they do not.
        """
        if (header := self._ledger.header) is None:
            raise ConfigurationError(
                f"run {run_id} has no answers yet", fix=f"`enginehouse resume {run_id}` asks them"
            )
        self._note_repair()
        self._demand_same_spec(header.spec, run_id)
        plans = [plan for plan in self._plans.values() if plan.name in self._ledger.tasks]
        for plan in plans:
            demand_same_size(plan, self._ledger.tasks[plan.name].record)
        for entry in read_journal(self._journal.path, Record):
            if isinstance(sample := entry.record, SampleRecord) and sample.failure is None:
                known = self._ledger.tasks[sample.task].record
                demand_same_question(self._plans[sample.task], known, sample, spec=self._spec)
        states = {plan.name: bytes(self._ledger.tasks[plan.name].states) for plan in plans}
        for plan in plans:
            self._write(plan.record)
        return states

    def changes(self, before: Mapping[str, bytes]) -> dict[str, dict[str, int]]:
        """For each task, how many samples changed the outcome, and how ("wrong → correct")."""
        names = {ASKED: "no score"} | {code: str(outcome) for outcome, code in CODES.items()}
        return {
            task: dict(
                Counter(
                    f"{names[old]} → {names[new]}"
                    for old, new in zip(states, self._ledger.tasks[task].states, strict=True)
                    if old != new
                )
            )
            for task, states in before.items()
        }

    async def score_waiting(self) -> None:
        """Score the answers that have no score, after a kill or when a new scoring begins."""
        waiting = sorted(self._ledger.waiting(), key=lambda pair: pair[1])
        self._started = self._breath = time.monotonic()
        for _, offset in waiting:
            self._score(read_record(self._journal.path, Record, offset=offset))
            await self._breathe()
        if waiting:
            await self._finish_scoring()

    def _score(self, sample: SampleRecord) -> None:
        begun = begin_score(self._plans[sample.task], sample)
        if isinstance(begun, Pending):
            self._scoring.add(asyncio.create_task(self._finish(begun)))
        else:
            self._write(begun)

    async def _finish(self, pending: Pending) -> None:
        self._write(await finish_score(pending, self._processes))

    async def _breathe(self) -> None:
        """Let others run if they have waited, and wait while many answers are being judged."""
        if (now := time.monotonic()) - self._breath > _BREATH:
            self._breath = now
            await asyncio.sleep(0)
        while len(self._scoring) >= MOST_JUDGED:
            await asyncio.wait(self._scoring, return_when=asyncio.FIRST_COMPLETED)
            self._forget_scored()

    def _forget_scored(self) -> None:
        """Raises what stopped one from being written."""
        for task in [task for task in self._scoring if task.done()]:
            self._scoring.discard(task)
            task.result()

    def count(self, states: tuple[int, ...]) -> int:
        """How many samples are in one of the states."""
        return sum(t.counts[state] for t in self._ledger.tasks.values() for state in states)

    async def ask_missing(
        self, sampler: Sampler, provenance: Provenance, *, wanted: tuple[int, ...]
    ) -> None:
        """Ask every sample in a wanted state, a bounded number at a time."""
        if missing := self.count(wanted):
            for plan in self._plans.values():
                check_capabilities(plan, sampler.capabilities, spec=self._spec)
            self._session = len(self._ledger.sessions)
            self._demand_same_weights(provenance)
            template = provenance.chat_template_digest
            self._counted = CountingSampler(sampler)
            asker = Asker(self._spec, self._counted, provenance=self._session, template=template)
            self._write(
                ProvenanceRecord(
                    id=self._session,
                    started=datetime.now(UTC),
                    provenance=provenance,
                    seeded=asker.seeded,
                )
            )
            workers = min(self._spec.concurrency or MOST_IN_FLIGHT, missing)
            self._limit = workers + GONE_AFTER
            self._started = self._breath = time.monotonic()
            self._requests_each = {p.name: requests_of(p) for p in self._plans.values()}
            self._remaining = RemainingTime(
                sum(
                    requests * sum(self._ledger.tasks[name].counts[state] for state in wanted)
                    for name, requests in self._requests_each.items()
                )
            )
            await run_workers(
                partial(self._ask, asker),
                self._units(wanted),
                count=workers,
                tick=self._report,
                interval=_TICK,
            )
            await self._finish_scoring()
            await self._end_streak(asker)
        self._progress(self._state())

    def _demand_same_weights(self, provenance: Provenance) -> None:
        known = {
            session.record.provenance.weights_digest
            for session in self._ledger.sessions.values()
            if session.requests
        } - {None}
        digest = provenance.weights_digest
        if known and known != {digest}:
            now = digest[:12] if digest else "not known"
            raise ConfigurationError(
                f"the weights of {provenance.model} are not those that the run began with",
                why=f"digest {', '.join(sorted(str(k)[:12] for k in known))} then, {now} now",
                fix="restore the checkpoint that the run began with, or start a new run",
            )

    def _units(self, wanted: tuple[int, ...]) -> Iterator[Unit]:
        for plan in self._plans.values():
            states = self._ledger.tasks[plan.name].states
            samples = plan.record.samples
            for index in range(len(states)):
                if states[index] in wanted:
                    yield Unit(plan, *divmod(index, samples))

    async def _finish_scoring(self) -> None:
        """Report progress until everything is scored."""
        while self._scoring:
            await asyncio.wait(self._scoring, timeout=_TICK, return_when=asyncio.FIRST_EXCEPTION)
            self._report()

    def _report(self) -> None:
        """Report progress. Raises what stopped a score from being written."""
        self._forget_scored()
        self._progress(self._state())

    async def _ask(self, asker: Asker, unit: Unit) -> None:
        assert self._remaining is not None
        requests = self._requests_each[unit.plan.name]
        self._remaining.begin(requests)
        self._settle(await asker.ask(unit), unit)
        self._remaining.finish(requests)
        await self._breathe()

    def _settle(self, sample: SampleRecord, unit: Unit) -> None:
        failure = sample.failure
        if _is_unconnected(sample):
            self._held.append(sample)
            if len(self._held) >= self._limit:
                raise self._gone()
            return
        if failure is None or failure.status is not None:
            self._answered = unit
            self._record_held()
        if failure is not None and _is_refused(sample):
            self._refused.append(sample)
            _, first = _REFUSED_AFTER[failure.error]
            if len(self._refused) >= (self._limit if self._any_answer else first):
                raise self._refusal()
            return
        self._write(sample)
        if failure is None:
            self._any_answer = True
            self._record_refused()
            self._score(sample)

    async def _end_streak(self, asker: Asker) -> None:
        """Judge the last failures by one sample that was answered before."""
        if self._held and (
            len(self._held) >= GONE_AFTER
            or self._answered is None
            or _is_unconnected(await asker.ask(self._answered))
        ):
            raise self._gone()
        self._record_held()
        if self._refused:
            proven = next(self._units(_ANSWERED), None)
            if proven is None or _is_refused(await asker.ask(proven)):
                raise self._refusal()
        self._record_refused()

    def _record_refused(self) -> None:
        """The key is good, so these samples were refused for a reason of their own."""
        for sample in self._refused:
            self._write(sample)
        self._refused.clear()

    def _refusal(self) -> WireError:
        failure = self._refused[-1].failure
        assert failure is not None
        kind, _ = _REFUSED_AFTER[failure.error]
        missing = sum(task.counts[MISSING] for task in self._ledger.tasks.values())
        return kind(
            f"{len(self._refused)} requests in a row were refused because of the API key",
            why=failure.message,
            fix=f"give a key that may do this, and resume: {missing} samples are missing, and none "
            "was counted as failed for this",
            status=failure.status,
        )

    def _record_held(self) -> None:
        """The server is there, so these samples failed for a reason of their own."""
        for sample in self._held:
            self._write(sample)
        self._held.clear()

    def _gone(self) -> ServerGoneError:
        last = self._held[-1].failure
        missing = sum(task.counts[MISSING] for task in self._ledger.tasks.values())
        return ServerGoneError(
            f"the server is gone: {len(self._held)} requests in a row could not connect",
            why=last.message if last else None,
            fix=f"look at the server's log, start it again, and resume: {missing} samples are "
            "missing, and none was counted as failed for this",
        )

    def _write(self, record: Record) -> None:
        self._ledger.add(record, offset=self._journal.append(record))

    def _state(self) -> Progress:
        ledger = self._ledger
        tasks = tuple(
            TaskProgress(
                task=name,
                done=sum(task.counts[ASKED + 1 :]),
                total=len(task.states),
                outcomes=task.outcomes(),
            )
            for name, task in ledger.tasks.items()
        )
        elapsed = time.monotonic() - self._started
        counted = self._counted
        tokens = counted.generated_tokens if counted else 0
        requests = counted.requests if counted else 0
        return Progress(
            tasks=tasks,
            requests=requests,
            elapsed=elapsed,
            generated_tokens=tokens,
            tokens_per_second=tokens / elapsed if tokens and elapsed else None,
            seconds_left=self._seconds_left(answered=requests, elapsed=elapsed),
        )

    def _seconds_left(self, *, answered: int, elapsed: float) -> float | None:
        if self._remaining is None:  # nothing is asked, at most scored
            return None if self.count((MISSING, ASKED)) else 0.0
        return self._remaining.seconds(answered=answered, elapsed=elapsed)


def _is_unconnected(sample: SampleRecord) -> bool:
    return sample.failure is not None and sample.failure.error in _UNCONNECTED


def _is_refused(sample: SampleRecord) -> bool:
    return sample.failure is not None and sample.failure.error in _REFUSED_AFTER


def _differences(one: msgspec.Struct, other: msgspec.Struct) -> list[str]:
    return [n for n in one.__struct_fields__ if getattr(one, n) != getattr(other, n)]
