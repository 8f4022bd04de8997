"""Scores a run's answers again. Only the scoring may differ, not the questions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import msgspec

from enginehouse.core.errors import ConfigurationError
from enginehouse.evaluation.asking import question_of, with_system
from enginehouse.evaluation.judge import Judge
from enginehouse.evaluation.ledger import ASKED, CODES
from enginehouse.evaluation.plan import TaskPlan, TaskPlans
from enginehouse.evaluation.records import (
    DatasetRecord,
    EvaluationSpec,
    HeaderRecord,
    Record,
    SampleRecord,
)
from enginehouse.evaluation.runner import Evaluation, Timings
from enginehouse.evaluation.summary import summarise
from enginehouse.results.rescoring import Rescoring, TaskRescoring
from enginehouse.results.summary import Progress
from enginehouse.store.journal import Journal, read_journal
from enginehouse.store.runs import Run, RunStatus
from enginehouse.tasks.base import Generate, Outcome

_TIMINGS = Timings()


async def rescore(
    spec: EvaluationSpec,
    *,
    tasks: TaskPlans,
    run: Run,
    judge: Judge | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
    timings: Timings = _TIMINGS,
) -> Rescoring:
    """Score every answer of `run`'s journal again, by the tasks as they are now.

    Asks nothing but the `judge`, which is needed if a task has one.

    The earlier scores stay in the journal and no longer count. If this is stopped halfway, the run
    lacks scores, and `evaluate` or another `rescore` completes it. `progress` as in `evaluate`.

    Tasks of harnesses keep the scores that these gave. Raises ConfigurationError if a task now asks
    something other than what was answered (only scoring may differ) or all are of harnesses,
    RunLockedError and StoreError.
    """
    with run.hold():
        with Journal(run.journal_path, first=HeaderRecord) as journal:
            before = summarise(run)
            async with Evaluation(
                spec,
                tasks=tasks,
                journal=journal,
                judge=judge,
                progress=progress,
                timings=timings,
            ) as work:
                states = _begin_scoring(work, run.info.id)
                run.report_path.unlink(missing_ok=True)  # until all is scored, it would be wrong
                await work.score_waiting()
                changes = {
                    task: _changes(old, work.ledger.tasks[task].states)
                    for task, old in states.items()
                }
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
            if now.task in changes
        ),
    )


def _begin_scoring(work: Evaluation, run_id: str) -> dict[str, bytes]:
    """Discard every score, if the tasks still ask what was answered; the states until now."""
    known = work.ledger.tasks
    if work.ledger.header is None:
        raise ConfigurationError(
            f"run {run_id} has no answers yet", fix=f"`enginehouse resume {run_id}` asks them"
        )
    if not work.plans:
        raise ConfigurationError(
            f"run {run_id} has no answers that are scored here",
            why="its tasks were scored by their harnesses",
            fix="evaluate the model again, with another version of the harness if that scores "
            "differently (--harness-version)",
        )
    work.require_same_spec(run_id)
    plans = [plan for plan in work.plans.values() if plan.name in known]
    for plan in plans:
        require_same_size(plan, known[plan.name].record)
    for entry in read_journal(work.journal.path, Record):
        sample = entry.record
        if (
            isinstance(sample, SampleRecord)
            and sample.failure is None
            and sample.task in work.plans
        ):
            require_same_question(
                work.plans[sample.task], known[sample.task].record, sample, spec=work.spec
            )
    states = {plan.name: bytes(known[plan.name].states) for plan in plans}
    for plan in plans:
        work.write(plan.record)
    return states


def _changes(before: bytes, after: bytearray) -> dict[str, int]:
    """How many samples changed the outcome, and how ("wrong → correct")."""
    names = {ASKED: "no score"} | {code: str(outcome) for outcome, code in CODES.items()}
    return dict(
        Counter(
            f"{names[old]} → {names[new]}"
            for old, new in zip(before, after, strict=True)
            if old != new
        )
    )


def require_same_size(plan: TaskPlan, known: DatasetRecord) -> None:
    """Raise ConfigurationError if the task has another number of items or samples now."""
    if (plan.record.items, plan.record.samples) != (known.items, known.samples):
        now = f"{plan.record.items:,} items, {plan.record.samples:,} samples each, now"
        raise _changed(plan, f"{known.items:,} items, {known.samples:,} samples each, then; {now}")


def require_same_question(
    plan: TaskPlan, known: DatasetRecord, sample: SampleRecord, *, spec: EvaluationSpec
) -> None:
    """Raise ConfigurationError if the task would ask something else than what `sample` answers.

    A written answer's prompt, stop texts and length are compared. The prompts of choices and tool
    calls are journaled as they were encoded, so that for them version and data must be the same.
    """
    item = plan.item(sample.position)
    if item.id != sample.item:
        raise _changed(plan, f"item {sample.item} is item {item.id} now")
    question = question_of(plan, item)
    if not isinstance(question, Generate) or sample.tool_use or sample.continuations is not None:
        if (plan.record.version, plan.record.digest) != (known.version, known.digest):
            raise _changed(plan, "its version or its data have changed")
        return
    request = sample.requests[0]
    stop = question.stop if spec.stop is None else spec.stop
    limit = plan.settings.max_tokens or question.max_tokens
    if request.prompt != with_system(question.prompt, plan.settings.system):
        raise _changed(plan, f"item {sample.item} has a different prompt now")
    if (request.parameters.stop, request.parameters.max_tokens) != (stop, limit):
        raise _changed(
            plan, f"item {sample.item} has different stop texts or a different max_tokens now"
        )


def _changed(plan: TaskPlan, why: str) -> ConfigurationError:
    return ConfigurationError(
        f"task {plan.name} no longer asks the questions that the run's answers belong to",
        why=why,
        fix="only the scoring may differ: restore the rest of the task, or start a new run",
    )
